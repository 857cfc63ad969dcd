-- name: who_asks
-- What the user of this connection may do, and what time the server has.
SELECT current_user AS name,
       has_table_privilege('events', 'INSERT') AS may_append,
       has_table_privilege('events', 'SELECT') AS may_read,
       has_table_privilege('states', 'UPDATE') AS may_record,
       pg_has_role((SELECT relowner FROM pg_class WHERE oid = to_regclass('events')), 'MEMBER') AS owns,
       (SELECT coalesce(array_agg(role), '{}') FROM unnest($1::text[]) AS role WHERE to_regrole(role) IS NULL)
           AS missing_roles,
       clock_timestamp() AS moment
