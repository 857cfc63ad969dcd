-- name: audit_refuse_change_function
-- Rows of the audit are added and never changed; those of the last 28 days are not removed by anybody.
-- APPEND_ONLY_KEPT in storage/base.py says the same time, and the memory storage keeps to it.
CREATE FUNCTION audit_refuse_change() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'DELETE' AND OLD.changed_at < clock_timestamp() - interval '28 days' THEN
        RETURN OLD;
    END IF;
    RAISE EXCEPTION 'the audit is only added to: % is refused', TG_OP USING ERRCODE = 'restrict_violation';
END $$

-- name: audit_refuse_change_trigger
-- The condition is a comparison in the executor: rows of other tables of states never call the function.
CREATE TRIGGER states_audit_refuse_change BEFORE UPDATE OR DELETE ON states
FOR EACH ROW WHEN (OLD.table_name = 'audit') EXECUTE FUNCTION audit_refuse_change()

-- name: audit_refuse_truncate_trigger
CREATE TRIGGER states_audit_refuse_truncate BEFORE TRUNCATE ON states
FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse_change()

-- name: always_refuse_change
ALTER TABLE states ENABLE ALWAYS TRIGGER states_audit_refuse_change

-- name: always_refuse_truncate
ALTER TABLE states ENABLE ALWAYS TRIGGER states_audit_refuse_truncate
