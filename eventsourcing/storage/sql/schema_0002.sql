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
