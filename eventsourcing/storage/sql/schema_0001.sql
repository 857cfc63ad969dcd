-- name: positions
-- CACHE 1: a session that caches numbers would commit them long after others passed them.
CREATE SEQUENCE event_positions AS bigint MINVALUE 0 START 0 CACHE 1

-- name: first_position
-- The lock key of the first append is this 0; without it the key would equal the event's own position.
SELECT nextval('event_positions')

-- name: events
CREATE TABLE events (
    position       bigint      NOT NULL DEFAULT nextval('event_positions') PRIMARY KEY,
    recorded_at    timestamptz NOT NULL DEFAULT clock_timestamp(),
    "timestamp"    timestamptz NOT NULL,
    event_id       uuid        NOT NULL,
    correlation_id uuid,
    causation_id   uuid,
    event_version  integer     NOT NULL CHECK (event_version > 0),
    event_type     text        NOT NULL COLLATE "C",
    aggregate_id   text        NOT NULL COLLATE "C",
    aggregate_type text        NOT NULL COLLATE "C",
    metadata       json        NOT NULL,
    data           json        NOT NULL,
    CONSTRAINT events_event_id_key UNIQUE (event_id),
    CONSTRAINT events_stream_version_key UNIQUE (aggregate_id, event_version)
)

-- name: events_by_type
CREATE INDEX events_type_position ON events (event_type, position)

-- name: events_by_correlation
CREATE INDEX events_correlation_position ON events (correlation_id, position) WHERE correlation_id IS NOT NULL

-- name: events_by_time
CREATE INDEX events_timestamp ON events USING brin ("timestamp")

-- name: hold_horizon
-- Take, once a transaction, a shared lock whose key is the last position drawn so far: this
-- transaction can then own only positions above the key, and readers stop below the smallest key
-- held. pg_sequence_last_value, never SELECT last_value: the plain select can run up to 32 ahead.
-- 17747 is the tag that tells our keys from other advisory locks.
CREATE FUNCTION hold_horizon() RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF current_setting('esm.horizon_held', true) IS DISTINCT FROM pg_current_xact_id()::text THEN
        PERFORM pg_advisory_xact_lock_shared((17747::bigint << 48) | pg_sequence_last_value('event_positions'));
        PERFORM set_config('esm.horizon_held', pg_current_xact_id()::text, true);
    END IF;
END $$

-- name: hold_horizon_trigger_function
CREATE FUNCTION events_hold_horizon() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM hold_horizon();
    RETURN NULL;
END $$

-- name: hold_horizon_trigger
-- A statement trigger fires before a default draws a position, and no INSERT or COPY can forget it.
CREATE TRIGGER events_hold_horizon BEFORE INSERT ON events
FOR EACH STATEMENT EXECUTE FUNCTION events_hold_horizon()

-- name: refuse_change_function
CREATE FUNCTION events_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'events are immutable: % is refused', TG_OP USING ERRCODE = 'restrict_violation';
END $$

-- name: refuse_change_trigger
CREATE TRIGGER events_refuse_change BEFORE UPDATE OR DELETE ON events
FOR EACH STATEMENT EXECUTE FUNCTION events_refuse_change()

-- name: refuse_truncate_trigger
CREATE TRIGGER events_refuse_truncate BEFORE TRUNCATE ON events
FOR EACH STATEMENT EXECUTE FUNCTION events_refuse_change()

-- name: always_hold
-- ALWAYS: they fire under session_replication_role = replica too.
ALTER TABLE events ENABLE ALWAYS TRIGGER events_hold_horizon

-- name: always_refuse_change
ALTER TABLE events ENABLE ALWAYS TRIGGER events_refuse_change

-- name: always_refuse_truncate
ALTER TABLE events ENABLE ALWAYS TRIGGER events_refuse_truncate

-- name: states
-- Everything derived: read models, checkpoints, dead letters, replays. The free space keeps updates in place.
CREATE TABLE states (
    table_name text NOT NULL COLLATE "C",
    key        text NOT NULL COLLATE "C",
    value      json NOT NULL,
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp(),
    PRIMARY KEY (table_name, key)
) WITH (fillfactor = 80)
