-- name: open_append
-- Begin an append that is copied in. The order is the guarantee: the horizon is held, then the last
-- versions are resolved (each statement of a function has a snapshot of its own), then positions are drawn.
CREATE FUNCTION open_append(
    streams text[], events integer, OUT versions integer[], OUT positions bigint[], OUT recorded_at timestamptz
) LANGUAGE plpgsql AS $$
BEGIN
    PERFORM hold_horizon();
    SELECT coalesce(array_agg(head.version ORDER BY stream.place), '{}') INTO versions
    FROM unnest(streams) WITH ORDINALITY AS stream (id, place),
         LATERAL (SELECT coalesce(max(e.event_version), 0) AS version FROM events e
                  WHERE e.aggregate_id = stream.id COLLATE "C") AS head;
    SELECT array_agg(nextval('event_positions')) INTO positions FROM generate_series(1, events);
    recorded_at := clock_timestamp();
END $$

-- name: event_kinds
-- The catalogue of types seen: which event types occur with an aggregate type. A filter by aggregate type
-- is a filter by these event types, so that it needs no index of its own. Written before the first event
-- of a kind; a kind without events does no harm.
CREATE TABLE event_kinds (
    aggregate_type text NOT NULL COLLATE "C",
    event_type     text NOT NULL COLLATE "C",
    PRIMARY KEY (aggregate_type, event_type)
)

-- name: kinds_stored
INSERT INTO event_kinds SELECT DISTINCT aggregate_type, event_type FROM events

-- name: types_are_selective
-- A generic plan must not take a type for a third of the table because three types fill it: it would
-- walk all positions in search of a rare one. ANALYZE takes these numbers for its own.
ALTER TABLE events ALTER COLUMN event_type SET (n_distinct = 1000),
                   ALTER COLUMN correlation_id SET (n_distinct = 100000)

-- name: event_blocks
-- When the events of each 8192 positions happened: what a window of time cannot touch is not read. Derived,
-- and written behind the horizon only, where nothing changes any more. It replaces an index on the
-- timestamp, which every append paid for and no page in position order could use.
CREATE TABLE event_blocks (
    block    bigint      PRIMARY KEY,
    earliest timestamptz NOT NULL,
    latest   timestamptz NOT NULL
)

-- name: no_index_by_time
DROP INDEX events_timestamp
