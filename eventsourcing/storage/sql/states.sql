-- name: get
SELECT value FROM states WHERE table_name = $1 AND key = $2

-- name: get_locked
SELECT value FROM states WHERE table_name = $1 AND key = $2 FOR UPDATE

-- name: put
INSERT INTO states (table_name, key, value) VALUES ($1, $2, $3)
ON CONFLICT (table_name, key) DO UPDATE SET value = excluded.value, changed_at = clock_timestamp()

-- name: get_many
SELECT key, value FROM states WHERE table_name = $1 AND key = ANY($2::text[])

-- name: put_many
INSERT INTO states (table_name, key, value) SELECT $1, * FROM unnest($2::text[], $3::json[])
ON CONFLICT (table_name, key) DO UPDATE SET value = excluded.value, changed_at = clock_timestamp()

-- name: add
INSERT INTO states (table_name, key, value) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING true

-- name: add_many
INSERT INTO states (table_name, key, value)
SELECT $1, new.key, $3 FROM unnest($2::text[]) AS new (key) ORDER BY new.key COLLATE "C"
ON CONFLICT DO NOTHING

-- name: get_many_locked
-- In one order of row locks for everyone: no deadlocks.
SELECT key, value FROM states WHERE table_name = $1 AND key = ANY($2::text[]) ORDER BY key FOR UPDATE

-- name: delete
DELETE FROM states WHERE table_name = $1 AND key = $2

-- name: scan
SELECT key, value FROM states
WHERE table_name = $1 AND key >= $2 AND key < $3 ORDER BY key LIMIT $4

-- name: scan_backwards
SELECT key, value FROM states
WHERE table_name = $1 AND key >= $2 AND key < $3 ORDER BY key DESC LIMIT $4

-- name: count
SELECT count(*) FROM states WHERE table_name = $1 AND key >= $2 AND key < $3

-- name: delete_many
-- Locked in one order of rows for everyone: no deadlocks. Materialised, for a plan may run a subquery
-- again for every row, and so lock, and purge, other rows each time.
WITH chosen AS MATERIALIZED (
    SELECT key FROM states WHERE table_name = $1 AND key = ANY($2::text[]) ORDER BY key FOR UPDATE
)
DELETE FROM states USING chosen WHERE states.table_name = $1 AND states.key = chosen.key

-- name: purge
-- In the same order of row locks. What another transaction sets again while this one waits is spared.
WITH chosen AS MATERIALIZED (
    SELECT key FROM states
    WHERE table_name = $1 AND key >= $2 AND key < $3
      AND ($4::float8 IS NULL OR changed_at < clock_timestamp() - make_interval(secs => $4))
    ORDER BY key LIMIT $5 FOR UPDATE
), gone AS (
    DELETE FROM states USING chosen WHERE states.table_name = $1 AND states.key = chosen.key
    RETURNING states.key
)
SELECT count(*) FROM gone

-- name: try_lease
-- The two-key space of advisory locks is ours alone: the horizon uses the one-key space.
SELECT pg_try_advisory_lock(17747, hashtext($1))

-- name: release_lease
-- Refused with a warning by a session that does not hold it.
SELECT pg_advisory_unlock(17747, hashtext($1))

-- name: beat
-- Says that the session's process is alive: the server ends sessions that stay silent.
SELECT
