-- name: grant_rights
-- The roles of the event store and what each may do here; see docs/guides/roles.md. Roles belong to the whole
-- server: whoever may not create them gets the names of the missing ones back, and calls this again once
-- an administrator has. Repeating it changes nothing.
CREATE FUNCTION grant_event_store_rights() RETURNS text[] LANGUAGE plpgsql AS $$
DECLARE
    role text;
    missing text[] := '{}';
BEGIN
    FOREACH role IN ARRAY ARRAY['esm_reader', 'esm_relay', 'esm_writer'] LOOP
        IF to_regrole(role) IS NULL THEN
            BEGIN
                EXECUTE format('CREATE ROLE %I NOLOGIN', role);
            EXCEPTION
                WHEN insufficient_privilege THEN missing := missing || role;
                WHEN duplicate_object OR unique_violation THEN NULL; -- another database's upgrade was first
            END;
        END IF;
        CONTINUE WHEN role = ANY(missing);
        EXECUTE format('GRANT USAGE ON SCHEMA %I TO %I', current_schema(), role);
        EXECUTE format('GRANT SELECT ON events, event_kinds, event_blocks, states, event_store_version TO %I', role);
        EXECUTE format('GRANT SELECT ON SEQUENCE event_positions TO %I', role);
        IF role <> 'esm_reader' THEN
            EXECUTE format('GRANT INSERT, UPDATE, DELETE ON states TO %I', role);
            EXECUTE format('GRANT INSERT ON event_blocks TO %I', role);
        END IF;
        IF role = 'esm_writer' THEN
            EXECUTE format('GRANT INSERT ON events, event_kinds TO %I', role);
            EXECUTE format('GRANT USAGE ON SEQUENCE event_positions TO %I', role);
        END IF;
        BEGIN -- to see the age of other users' appends
            IF NOT pg_has_role(role, 'pg_read_all_stats', 'MEMBER') THEN
                EXECUTE format('GRANT pg_read_all_stats TO %I', role);
            END IF;
        EXCEPTION WHEN insufficient_privilege OR unique_violation THEN NULL;
        END;
    END LOOP;
    RETURN missing;
END $$

-- name: only_the_owner_grants
REVOKE EXECUTE ON FUNCTION grant_event_store_rights() FROM PUBLIC

-- name: grant_what_may_be_granted
SELECT grant_event_store_rights()
