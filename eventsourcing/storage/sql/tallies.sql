-- name: tally_types
-- How many events there are of each type and aggregate type between two positions, and the latest moment.
SELECT event_type, aggregate_type, NULL::uuid AS correlation_id, NULL::json AS value,
       count(*) AS times, max("timestamp") AS latest
FROM events
WHERE position > $1 AND position <= $2 AND ($3::text[] IS NULL OR event_type = ANY($3))
GROUP BY event_type, aggregate_type

-- name: tally_values
-- The same by correlation and by one field of the payload, compared as canonical JSON.
SELECT event_type, aggregate_type, correlation_id, value::json AS value, count(*) AS times, max(latest) AS latest
FROM (SELECT event_type, aggregate_type, correlation_id, (data -> $4::text)::text AS value, "timestamp" AS latest
      FROM events
      WHERE position > $1 AND position <= $2 AND ($3::text[] IS NULL OR event_type = ANY($3))) AS counted
GROUP BY event_type, aggregate_type, correlation_id, value
