-- name: exclude_appends
-- Nobody inserts until the end of the transaction,
LOCK TABLE events IN EXCLUSIVE MODE

-- name: hold_sequence
-- and nobody draws a position either: altering a sequence, if only to what it is, shuts everyone else out.
ALTER SEQUENCE event_positions CACHE 1

-- name: what_is_known
SELECT (SELECT coalesce(max(position), 0) FROM events) AS committed,
       pg_sequence_last_value('event_positions') AS drawn,
       (SELECT coalesce(max((value->>'last')::bigint), 0) FROM states WHERE table_name = $1) AS lost,
       (SELECT coalesce(max((value->>'position')::bigint), 0) FROM states WHERE table_name = $2) AS checkpoint

-- name: move_sequence
SELECT setval('event_positions', $1)
