-- name: version
SELECT version_num FROM event_store_version
