-- The ways of nearly all tasks, made shorter: each row is formed less often on its way, and found once. Their plans are shaped by settings, so
-- they are kept: with arrays or a limit at hand, Postgres would think a plan of its own for each call worth its while, which takes longer
-- than to run it for a few.

-- Takes in tasks that are new, start now, and are of groups without limits: false, and nothing done, where that is not so of all, and a
-- unique violation where one is there already. p_policies may be null: all have the default. p_distinct: their accounts, each once.
create function crossover.enqueue_new_tasks(
    p_distinct text[], p_flag_revision text, p_ids uuid[], p_created_ats timestamptz[], p_vts bigint[], p_ranks smallint[],
    p_accounts text[], p_kinds text[], p_grps text[], p_policies text[], p_payloads text[])
returns boolean language plpgsql
-- The table of accounts is small at first, and the plan is kept.
set enable_seqscan = off set enable_mergejoin = off set plan_cache_mode = force_generic_plan as $$
declare
    v_now timestamptz := clock_timestamp();
begin
    -- That needs no lock, see enqueue_tasks.
    if exists (select from crossover.groups g where g.gated)
        or exists (select from unnest(p_distinct) d (account)
            where not exists (select from crossover.accounts a where a.account = d.account and a.state = 'armed'))
    then
        return false;
    end if;
    insert into crossover.tasks (id, created_at, run_at, vt, rank, account, kind, grp, flag_revision, policy, payload)
    select g.id, g.created_at, v_now, g.vt, g.rank, g.account, g.kind, g.grp, p_flag_revision, g.policy::json, g.payload::json
    from unnest(p_ids, p_created_ats, p_vts, p_ranks, p_accounts, p_kinds, p_grps, p_policies, p_payloads)
        as g (id, created_at, vt, rank, account, kind, grp, policy, payload);
    insert into crossover.tasks_ready (rank, vt, id, created_at, due_at, attempt, account, kind, grp)
    select g.rank, g.vt, g.id, g.created_at, v_now, 1, g.account, g.kind, g.grp
    from unnest(p_ids, p_created_ats, p_vts, p_ranks, p_accounts, p_kinds, p_grps)
        as g (id, created_at, vt, rank, account, kind, grp);
    return true;
end $$;

-- Ends attempts, as before; p_retries is null where none has a retry, which is the shorter way.
create or replace function crossover.finish_tasks(
    p_worker uuid, p_ranks smallint[], p_vts bigint[], p_ids uuid[], p_attempts integer[], p_outcomes text[], p_permanents boolean[],
    p_retry_afters bigint[], p_retries bigint[], p_results text[], p_errors text[], p_unknowns text[])
returns setof uuid language plpgsql
-- A plan that was made while the table was empty would read all of it for each end, for as long as the connection lasts, with all that is
-- dead in it. Without plain index scans there is none but to look each one up.
set enable_seqscan = off set enable_indexscan = off set enable_indexonlyscan = off set enable_hashjoin = off set enable_mergejoin = off
set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
begin
    if p_retries is null then
        return query with held as (
            delete from crossover.tasks_ready r
            using unnest(p_ranks, p_vts, p_ids, p_attempts, p_outcomes, p_permanents, p_retry_afters, p_results, p_errors, p_unknowns)
                as f (rank, vt, id, attempt, outcome, permanent, retry_after_ms, result, error, unknown)
            where r.rank = f.rank and r.vt = f.vt and r.id = f.id and r.attempt = f.attempt and r.worker = p_worker
            returning r.id, r.due_at, r.started_at, r.attempt, f.outcome, f.permanent, f.retry_after_ms, f.result, f.error, f.unknown)
        insert into crossover.attempts (id, due_at, started_at, ended_at, epoch, attempt, rehearsal, permanent,
            retry_after_ms, side, outcome, result, error, unknown)
        select h.id, h.due_at, h.started_at, clock_timestamp(), 1, h.attempt, false, h.permanent, h.retry_after_ms, 'postgres',
            h.outcome, h.result::json, h.error, h.unknown from held h
        returning id;
        perform crossover.tasks_ended(p_ids);
        return;
    end if;
    return query with held as (
        delete from crossover.tasks_ready r
        using unnest(p_ranks, p_vts, p_ids, p_attempts, p_outcomes, p_permanents, p_retry_afters, p_retries, p_results, p_errors, p_unknowns)
            as f (rank, vt, id, attempt, outcome, permanent, retry_after_ms, retry_ms, result, error, unknown)
        where r.rank = f.rank and r.vt = f.vt and r.id = f.id and r.attempt = f.attempt and r.worker = p_worker
        returning r.rank, r.vt, r.id, r.created_at, r.due_at, r.started_at, r.attempt, r.account, r.kind, r.grp, r.wish,
            f.outcome, f.permanent, f.retry_after_ms, f.retry_ms, f.result, f.error, f.unknown),
    ended as (
        select h.*, h.wish is not null and h.retry_ms is not null as called_off from held h),
    recorded as (
        insert into crossover.attempts (id, due_at, started_at, ended_at, epoch, attempt, rehearsal, permanent,
            retry_after_ms, retry_ms, side, outcome, result, error, unknown)
        select id, due_at, started_at, clock_timestamp(), 1, attempt, false, permanent, retry_after_ms,
            case when not called_off then retry_ms end, 'postgres', case when called_off then 'cancelled' else outcome end,
            result::json, case when called_off then concat_ws('; ', wish, error) else error end, unknown from ended),
    again as (
        insert into crossover.tasks_scheduled (id, due_at, created_at, vt, rank, attempt, account, kind, grp)
        select id, clock_timestamp() + retry_ms * interval '1 millisecond', created_at, vt, rank, attempt + 1, account, kind, grp
        from ended where retry_ms is not null and not called_off)
    select id from held;
    -- By a statement of its own, which sees who came to wait before this had its locks.
    perform crossover.tasks_ended(p_ids);
end $$;

-- It is called by the ends of tasks, which look nothing up by index scans.
alter function crossover.tasks_ended(uuid[]) set enable_indexscan = on;
alter function crossover.tasks_ended(uuid[]) set enable_indexonlyscan = on;

-- Takes the head of what is ready, as before. What was locked is found again by where it lies: a locked row doesn't move, and one that
-- moved just before it was locked is left to the next claim.
create or replace function crossover.claim_tasks_by_limits(p_worker uuid, p_limit integer, p_low integer, p_rank smallint)
returns table (rank smallint, vt bigint, id uuid, attempt integer, due_at timestamptz, started_at timestamptz, run_at timestamptz,
    account text, kind text, grp text, policy text, payload text, wish text)
language plpgsql
as $$
#variable_conflict use_column
begin
    return query with head as materialized (
        select r.ctid as at, r.rank, r.id, r.created_at, r.grp, r.gated or r.wish is not null as gated
        from crossover.tasks_ready r where r.worker is null
        order by r.rank, r.vt, r.id limit p_limit for no key update skip locked),
    low as materialized (
        select r.ctid as at, r.rank, r.id, r.created_at, r.grp, r.gated or r.wish is not null as gated
        from crossover.tasks_ready r
        where r.worker is null and r.rank = p_rank and p_rank > (select max(h.rank) from head h)
        order by r.rank, r.vt, r.id limit p_low for no key update skip locked),
    picked as materialized (
        select p.at, p.id, p.created_at,
            not p.gated and exists (select from crossover.groups g where g.grp = p.grp and g.gated) as stray
        from (select * from low union all (select * from head limit p_limit - (select count(*) from low))) p),
    strays as (
        delete from crossover.tasks_ready r using picked p where p.stray and r.ctid = p.at and r.worker is null returning r.*),
    stopped as (
        insert into crossover.gate (grp, task, rank, ord, id, due_at, created_at, attempt, execute, account, kind)
        select s.grp, true, s.rank, s.vt, s.id, s.due_at, s.created_at, s.attempt, true, s.account, s.kind from strays s)
    update crossover.tasks_ready r set worker = p_worker, started_at = clock_timestamp()
    from picked p left join crossover.tasks k on k.id = p.id and k.created_at = p.created_at
    where not p.stray and r.ctid = p.at and r.worker is null
    returning r.rank, r.vt, r.id, r.attempt, r.due_at, r.started_at, k.run_at, r.account, r.kind, r.grp, k.policy::text,
        k.payload::text, r.wish;
end $$;

create or replace function crossover.claim_tasks(p_worker uuid, p_limit integer, p_low integer)
returns table (rank smallint, vt bigint, id uuid, attempt integer, due_at timestamptz, started_at timestamptz, run_at timestamptz,
    account text, kind text, grp text, policy text, payload text, wish text)
language plpgsql
-- The plan is kept while the table grows from nothing to millions.
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off
set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
    v_low   integer := 0;
    v_first smallint;
    v_last  smallint;
begin
    perform from crossover.workers w where w.worker = p_worker for key share;
    if not found then return; end if;
    perform pg_advisory_xact_lock_shared(crossover.claims_lock());
    if p_low > 0 then
        select r.rank into v_first from crossover.tasks_ready r where r.worker is null order by r.rank, r.vt, r.id limit 1;
        select r.rank into v_last from crossover.tasks_ready r where r.worker is null
        order by r.rank desc, r.vt desc, r.id desc limit 1;
        -- Mostly all have one priority, and a plain claim does.
        v_low := case when v_first < v_last then least(p_low, p_limit) else 0 end;
    end if;
    if exists (select from crossover.groups g where g.gated) then
        return query select * from crossover.claim_tasks_by_limits(p_worker, p_limit, v_low, v_last);
        return;
    end if;
    if v_low > 0 then
        return query with head as materialized (
            select r.ctid as at, r.rank, r.id, r.created_at from crossover.tasks_ready r where r.worker is null
            order by r.rank, r.vt, r.id limit p_limit for no key update skip locked),
        low as materialized (
            select r.ctid as at, r.rank, r.id, r.created_at from crossover.tasks_ready r
            where r.worker is null and r.rank = v_last and v_last > (select max(h.rank) from head h)
            order by r.rank, r.vt, r.id limit v_low for no key update skip locked),
        picked as materialized (
            select * from low union all (select * from head limit p_limit - (select count(*) from low)))
        update crossover.tasks_ready r set worker = p_worker, started_at = clock_timestamp()
        from picked p left join crossover.tasks k on k.id = p.id and k.created_at = p.created_at
        where r.ctid = p.at and r.worker is null
        returning r.rank, r.vt, r.id, r.attempt, r.due_at, r.started_at, k.run_at, r.account, r.kind, r.grp, k.policy::text,
            k.payload::text, r.wish;
        return;
    end if;
    return query with head as materialized (
        select r.ctid as at, r.id, r.created_at from crossover.tasks_ready r where r.worker is null
        order by r.rank, r.vt, r.id limit p_limit for no key update skip locked)
    update crossover.tasks_ready r set worker = p_worker, started_at = clock_timestamp()
    from head p left join crossover.tasks k on k.id = p.id and k.created_at = p.created_at
    where r.ctid = p.at and r.worker is null
    returning r.rank, r.vt, r.id, r.attempt, r.due_at, r.started_at, k.run_at, r.account, r.kind, r.grp, k.policy::text,
        k.payload::text, r.wish;
end $$;

-- Takes what is ready from a place on in each rank, the first ranks first: p_vts says from where in that of p_ranks. What lies before is
-- for claims from the head. While some transaction is held open, all that was ever claimed since lies dead at the head, and a claim
-- from there reads it each time. Groups with limits are claimed from the head.
create function crossover.claim_tasks_from(p_worker uuid, p_limit integer, p_ranks smallint[], p_vts bigint[])
returns table (rank smallint, vt bigint, id uuid, attempt integer, due_at timestamptz, started_at timestamptz, run_at timestamptz,
    account text, kind text, grp text, policy text, payload text, wish text)
language plpgsql
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off
set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
declare
    v_left integer := p_limit;
    v_rows integer;
begin
    perform from crossover.workers w where w.worker = p_worker for key share;
    if not found then return; end if;
    perform pg_advisory_xact_lock_shared(crossover.claims_lock());
    if exists (select from crossover.groups g where g.gated) then
        return query select * from crossover.claim_tasks(p_worker, p_limit, 0);
        return;
    end if;
    for n in 1..cardinality(p_ranks) loop
        return query with head as materialized (
            select r.ctid as at, r.id, r.created_at from crossover.tasks_ready r
            where r.worker is null and r.rank = p_ranks[n] and r.vt >= p_vts[n]
            order by r.rank, r.vt, r.id limit v_left for no key update skip locked)
        update crossover.tasks_ready r set worker = p_worker, started_at = clock_timestamp()
        from head p left join crossover.tasks k on k.id = p.id and k.created_at = p.created_at
        where r.ctid = p.at and r.worker is null
        returning r.rank, r.vt, r.id, r.attempt, r.due_at, r.started_at, k.run_at, r.account, r.kind, r.grp, k.policy::text,
            k.payload::text, r.wish;
        get diagnostics v_rows = row_count;
        v_left := v_left - v_rows;
        exit when v_left <= 0;
    end loop;
end $$;
