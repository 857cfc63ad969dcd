-- name: append_one
-- One event in one round trip. No row comes back when the version it must have is not the next one.
-- The version is resolved in the statement's snapshot, before the default draws the position.
INSERT INTO events (event_id, event_type, aggregate_id, aggregate_type, event_version, "timestamp",
                    correlation_id, causation_id, metadata, data)
SELECT $1, $2, $3, $4, head.version + 1, $6, $7, $8, $9, $10
FROM (SELECT coalesce(max(event_version), 0) AS version FROM events WHERE aggregate_id = $3) AS head
WHERE $5::integer = 0 OR $5::integer = head.version + 1
RETURNING position, event_version, recorded_at

-- name: append_many
-- All events or none in one statement: versions resolved, then positions drawn in the caller's order,
-- then rows inserted sorted by aggregate (unsorted ones deadlock). No row comes back when any version
-- that must hold is not the next one.
WITH input AS MATERIALIZED (
    SELECT * FROM unnest($1::uuid[], $2::text[], $3::text[], $4::text[], $5::integer[], $6::timestamptz[],
                         $7::uuid[], $8::uuid[], $9::json[], $10::json[])
    WITH ORDINALITY AS new (event_id, event_type, aggregate_id, aggregate_type, wanted, "timestamp",
                            correlation_id, causation_id, metadata, data, place)
), versioned AS MATERIALIZED (
    SELECT input.*,
           (SELECT coalesce(max(e.event_version), 0) FROM events e
            WHERE e.aggregate_id = input.aggregate_id COLLATE "C")
           + row_number() OVER (PARTITION BY input.aggregate_id COLLATE "C" ORDER BY place) AS event_version
    FROM input
), placed AS MATERIALIZED (
    SELECT nextval('event_positions') AS position, ordered.*
    FROM (SELECT * FROM versioned ORDER BY place) AS ordered
    WHERE NOT EXISTS (SELECT FROM versioned WHERE wanted <> 0 AND wanted <> event_version)
)
INSERT INTO events (position, event_id, event_type, aggregate_id, aggregate_type, event_version, "timestamp",
                    correlation_id, causation_id, metadata, data)
SELECT position, event_id, event_type, aggregate_id, aggregate_type, event_version, "timestamp",
       correlation_id, causation_id, metadata, data
FROM placed ORDER BY aggregate_id COLLATE "C", position
RETURNING position, event_version, recorded_at

-- name: open_append
SELECT versions, positions, recorded_at FROM open_append($1::text[], $2)

-- name: stored
-- The events among these ids that are stored.
SELECT event_id, event_type, aggregate_id, aggregate_type, event_version, "timestamp", correlation_id,
       causation_id, metadata, data, position, recorded_at
FROM events WHERE event_id = ANY($1::uuid[])

-- name: versions
-- The last version of each of these aggregates that has events.
SELECT streams.aggregate_id,
       (SELECT max(e.event_version) FROM events e WHERE e.aggregate_id = streams.aggregate_id) AS version
FROM unnest($1::text[]) AS streams (aggregate_id)

-- name: stored_ids
SELECT event_id FROM events WHERE event_id = ANY($1::uuid[])

-- name: latest_timestamps
SELECT aggregate_id, max("timestamp") AS latest FROM events
WHERE aggregate_id = ANY($1::text[]) GROUP BY aggregate_id

-- name: last_versions
-- The last version of every type below a version, for each of these aggregates.
SELECT streams.aggregate_id, e.event_type, max(e.event_version) AS version
FROM unnest($1::text[], $2::integer[]) AS streams (aggregate_id, before)
JOIN events e ON e.aggregate_id = streams.aggregate_id COLLATE "C" AND e.event_version < streams.before
GROUP BY streams.aggregate_id, e.event_type

-- name: select_events
-- The head of every read; conditions, order and limit are assembled from the table of fragments.
SELECT event_id, event_type, aggregate_id, aggregate_type, event_version, "timestamp", correlation_id,
       causation_id, metadata, data, position, recorded_at
FROM events

-- name: select_columns
-- The head of every read as columns (event_columns).
SELECT event_id, event_type, aggregate_id, event_version, metadata, data, position
FROM events

-- name: horizon
-- The smaller of the highest committed position and the smallest key that an append in flight holds.
-- The snapshot comes first, pg_locks is read live after it; reading events needs a new statement.
SELECT least(
    (SELECT coalesce(max(position), 0) FROM events),
    (SELECT min(((classid::bigint & 65535) << 32) | objid::bigint) FROM pg_locks
     WHERE locktype = 'advisory' AND mode = 'ShareLock' AND objsubid = 1
       AND classid::bigint >> 16 = 17747
       AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
)

-- name: head
-- The highest committed position; after a restore, the last of the positions recorded as lost.
SELECT greatest(coalesce(max(position), 0),
                (SELECT max((value->>'last')::bigint) FROM states WHERE table_name = $1))
FROM events

-- name: state_of_server
-- What a new connection has come to. Checkpoints commit after the events they count: one above the head
-- says that the store was restored without them.
SELECT pg_is_in_recovery() AS standby, current_setting('synchronous_commit') AS synchronous_commit,
       greatest((SELECT coalesce(max(position), 0) FROM events),
                (SELECT max((value->>'last')::bigint) FROM states WHERE table_name = $1)) AS head,
       (SELECT coalesce(max((value->>'position')::bigint), 0) FROM states WHERE table_name = $2) AS checkpoint

-- name: wait_for_the_log
-- Where the database acknowledges commits before they are on disk, ours would not survive a crash.
SET synchronous_commit = local

-- name: oldest_append
-- How long the oldest append in flight has been open. Another user's transactions show their age only to
-- members of pg_read_all_stats.
SELECT coalesce(extract(epoch FROM clock_timestamp() - min(activity.xact_start)), 0)::float8
FROM pg_locks JOIN pg_stat_activity AS activity USING (pid)
WHERE locktype = 'advisory' AND mode = 'ShareLock' AND objsubid = 1 AND classid::bigint >> 16 = 17747
  AND database = (SELECT oid FROM pg_database WHERE datname = current_database())

-- name: allocated
-- Has anything been drawn since? Cheap enough to ask every 20 ms.
SELECT pg_sequence_last_value('event_positions')

-- name: add_kinds
INSERT INTO event_kinds (aggregate_type, event_type) SELECT * FROM unnest($1::text[], $2::text[])
ON CONFLICT DO NOTHING

-- name: types_of_kinds
-- The event types that occur with any of these aggregate types.
SELECT DISTINCT event_type FROM event_kinds WHERE aggregate_type = ANY($1::text[]) ORDER BY event_type

-- name: next_block
-- The first block that is not written yet.
SELECT coalesce(max(block) + 1, 0) FROM event_blocks

-- name: add_blocks
INSERT INTO event_blocks (block, earliest, latest)
SELECT position >> 13, min("timestamp"), max("timestamp") FROM events
WHERE position >= $1 AND position < $2 GROUP BY 1
ON CONFLICT DO NOTHING

-- name: blocks_between
-- The blocks that hold events of a window of time; NULL leaves an end open.
SELECT block FROM event_blocks
WHERE latest >= coalesce($1, '-infinity'::timestamptz) AND earliest <= coalesce($2, 'infinity'::timestamptz)
ORDER BY block
