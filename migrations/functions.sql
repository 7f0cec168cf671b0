-- The current text of every function and trigger, which may be applied again and again. To change one, edit it here and
-- add a migration that applies this file (2026_11_28_functions is an example); its downgrade brings the old text back.

-- How much higher the numbers of transactions are than this server's own. A restore into another server, where they
-- are counted anew, replaces the number: it must outlive every migration, so the function is made only once.
DO $do$ BEGIN
    IF to_regprocedure('convener_transaction_offset()') IS NULL THEN
        CREATE FUNCTION convener_transaction_offset() RETURNS bigint LANGUAGE sql IMMUTABLE AS $$SELECT 0::bigint$$;
    END IF;
END $do$;

-- The number under which an event is read. Taken when the event is written, after all locks it waited for: its own
-- number may be lower than that of a change which was committed before and which it follows.
CREATE OR REPLACE FUNCTION convener_event_transaction() RETURNS bigint LANGUAGE plpgsql VOLATILE AS $$
BEGIN
    RETURN greatest((pg_current_xact_id()::text)::bigint, (pg_snapshot_xmax(pg_current_snapshot())::text)::bigint)
           + convener_transaction_offset();
END $$;

-- The position up to which a statement that begins afterwards sees everything that these tables will ever hold, and
-- whether an open transaction keeps it back. Whoever writes to a table keeps a lock on it until the end, so that
-- pg_locks is a list of the writers, kept by PostgreSQL: other transactions, and those of other databases, keep nobody
-- back. A writer that is not listed yet takes its number and its `seq` after the two that are read here first; one that
-- is listed numbers its rows from its own transaction on.
CREATE OR REPLACE FUNCTION convener_horizon(VARIADIC written regclass[], OUT transaction bigint, OUT seq bigint,
                                            OUT is_held boolean) LANGUAGE plpgsql VOLATILE AS $$
DECLARE
    oldest bigint;
BEGIN
    transaction := (pg_snapshot_xmax(pg_current_snapshot())::text)::bigint;
    -- Before the first event the sequence shows the value that this one will have. The row that took the last value may
    -- hold events up to the next one.
    SELECT CASE WHEN is_called THEN last_value + 1023 ELSE last_value - 1 END INTO seq FROM events_seq_seq;
    WITH lock AS MATERIALIZED (
        SELECT virtualtransaction, locktype, database, relation, mode, transactionid FROM pg_locks
        WHERE granted AND locktype IN ('relation', 'transactionid')
    )
    -- A lock shows 32 bits of the number; it is the one of these that is nearest to the next number.
    SELECT min(transaction + ((own.transactionid::text::bigint - transaction + 6442450944) & 4294967295) - 2147483648)
    INTO oldest
    FROM lock writer JOIN lock own USING (virtualtransaction)
    WHERE writer.relation = ANY (written) AND writer.mode = 'RowExclusiveLock'
      AND writer.database = (SELECT oid FROM pg_database WHERE datname = current_database())
      AND own.locktype = 'transactionid' AND own.mode = 'ExclusiveLock';
    is_held := oldest <= transaction;
    IF is_held THEN
        transaction := oldest - 1;
        seq := 9223372036854775807;
    END IF;
    is_held := coalesce(is_held, false);
    transaction := transaction + convener_transaction_offset();
END $$;

-- The phase in which a task is counted: its state, except that a pending task is `held` with its goal or `delayed`
-- until its time.
CREATE OR REPLACE FUNCTION convener_phase(state text, run_at timestamptz) RETURNS text LANGUAGE sql IMMUTABLE
AS $$
    SELECT CASE WHEN state = 'pending' AND run_at = 'infinity' THEN 'held'
                WHEN state = 'pending' AND run_at IS NOT NULL THEN 'delayed' ELSE state END
$$;

-- The phase as it is counted, with the namespace that the stored name of the task's goal tells (not for `default`), and
-- with the priority at its submit where it has another one now: `@lab-a/1/pending`. Nothing in it may depend on the
-- session, as `||` of a number would: then PostgreSQL would call it for every row instead of making it part of the query.
CREATE OR REPLACE FUNCTION convener_counted(goal_id text, state text, run_at timestamptz,
                                            submitted_priority smallint DEFAULT NULL) RETURNS text
LANGUAGE sql IMMUTABLE AS $$
    SELECT CASE WHEN goal_id LIKE '@%/%' THEN split_part(goal_id, '/', 1) || '/' ELSE '' END
           || coalesce(submitted_priority::text || '/', '') || convener_phase(state, run_at)
$$;

-- Every change of `tasks` adds lines to `queue_changes`, which a duty folds into `queue_counts`: no statement can forget
-- to count, and no two of them wait for the row of a counter. The statements of the hot path, which know what they do,
-- write the lines themselves and say so: see `store/counters.py` of the queue.
CREATE OR REPLACE FUNCTION convener_count_tasks() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF TG_OP = 'INSERT' THEN
        INSERT INTO queue_changes (agent_type, priority, phase, tasks)
        SELECT agent_type, priority, convener_counted(goal_id, state, run_at, submitted_priority), count(*) FROM arrived GROUP BY 1, 2, 3;
    ELSIF TG_OP = 'DELETE' THEN
        INSERT INTO queue_changes (agent_type, priority, phase, tasks)
        SELECT agent_type, priority, convener_counted(goal_id, state, run_at, submitted_priority), -count(*) FROM departed GROUP BY 1, 2, 3;
    ELSE
        INSERT INTO queue_changes (agent_type, priority, phase, tasks)
        SELECT agent_type, priority, phase, sum(tasks) FROM (
            SELECT agent_type, priority, convener_counted(goal_id, state, run_at, submitted_priority) AS phase, 1 AS tasks
            FROM arrived
            UNION ALL
            SELECT agent_type, priority, convener_counted(goal_id, state, run_at, submitted_priority), -1 FROM departed
        ) change GROUP BY 1, 2, 3 HAVING sum(tasks) <> 0;
    END IF;
    RETURN NULL;
END $$;

CREATE OR REPLACE TRIGGER tasks_count_insert AFTER INSERT ON tasks
    REFERENCING NEW TABLE AS arrived
    FOR EACH STATEMENT
    WHEN (current_setting('convener.counted'::text, true) IS DISTINCT FROM statement_timestamp()::text)
    EXECUTE FUNCTION convener_count_tasks();

CREATE OR REPLACE TRIGGER tasks_count_update AFTER UPDATE ON tasks
    REFERENCING OLD TABLE AS departed NEW TABLE AS arrived
    FOR EACH STATEMENT
    WHEN (current_setting('convener.counted'::text, true) IS DISTINCT FROM statement_timestamp()::text)
    EXECUTE FUNCTION convener_count_tasks();

CREATE OR REPLACE TRIGGER tasks_count_delete AFTER DELETE ON tasks
    REFERENCING OLD TABLE AS departed
    FOR EACH STATEMENT
    WHEN (current_setting('convener.counted'::text, true) IS DISTINCT FROM statement_timestamp()::text)
    EXECUTE FUNCTION convener_count_tasks();

-- Records of who decided what: nobody rewrites them, not even by mistake.
CREATE OR REPLACE FUNCTION convener_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'rows of % are only added, never changed or deleted', TG_TABLE_NAME;
END $$;

CREATE OR REPLACE TRIGGER config_versions_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON config_versions
    FOR EACH STATEMENT EXECUTE FUNCTION convener_append_only();

CREATE OR REPLACE TRIGGER audit_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON audit
    FOR EACH STATEMENT EXECUTE FUNCTION convener_append_only();

CREATE OR REPLACE TRIGGER weights_append_only BEFORE DELETE OR UPDATE OR TRUNCATE ON weights
    FOR EACH STATEMENT EXECUTE FUNCTION convener_append_only();
