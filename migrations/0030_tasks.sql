-- Tasks: interactions of accounts in `complete` whose caller gave no key. Nothing of them goes to Temporal and no other
-- router can name them, so their record is their pin: written once, never changed, dropped by partition. What a claim
-- reads and changes is a narrow row beside it. docs/task-states.md has the picture.

-- Written once, by the router that accepted it. `created_at` is what the id (a version 7 UUID) says of its time, so that
-- an id alone leads to its partition.
create table crossover.tasks (
    id            uuid not null,
    created_at    timestamptz not null,
    run_at        timestamptz not null,
    vt            bigint not null,
    rank          smallint not null,
    account       text not null,
    kind          text not null,
    grp           text not null,
    flag_revision text not null,
    policy        json,
    payload       json not null,
    primary key (id, created_at)
) partition by range (created_at);
comment on table crossover.tasks is 'Interactions that only Postgres has, and which no caller named: the record is the pin.';
comment on column crossover.tasks.vt is 'Virtual start time: the order among tasks of one rank, by which accounts share.';
comment on column crossover.tasks.policy is 'Null: the default.';
create table crossover.tasks_default partition of crossover.tasks default;

-- What can start, and what a worker holds. A claim sets `worker` in place: no index speaks of it and half of each page
-- is left free, so that the new version of the row goes beside the old one and no index is written.
create table crossover.tasks_ready (
    rank       smallint not null,
    vt         bigint not null,
    id         uuid not null,
    created_at timestamptz not null,
    due_at     timestamptz not null,
    started_at timestamptz,
    worker     uuid,
    attempt    integer not null,
    account    text not null,
    kind       text not null,
    grp        text not null,
    wish       text,
    primary key (rank, vt, id)
) with (fillfactor = 45, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 5000);
comment on column crossover.tasks_ready.rank is 'Minus the priority, so that the index ascends.';
comment on column crossover.tasks_ready.attempt is 'The number of the attempt that runs, or that the next one has.';
comment on column crossover.tasks_ready.wish is 'Why it is to be cancelled, where a worker holds it.';
comment on column crossover.tasks_ready.worker is 'Who holds it, by crossover.workers. Null: nobody.';

-- What must not start before due_at: a future run_at, or the wait before another attempt.
create table crossover.tasks_scheduled (
    id         uuid primary key,
    due_at     timestamptz not null,
    created_at timestamptz not null,
    vt         bigint not null,
    rank       smallint not null,
    attempt    integer not null,
    account    text not null,
    kind       text not null,
    grp        text not null
);
create index tasks_scheduled_due on crossover.tasks_scheduled (due_at);

-- Who may hold tasks. One lease a worker, and not one a task: a heartbeat writes one row whatever it holds.
create table crossover.workers (
    worker      uuid primary key,
    lease_until timestamptz not null,
    started_at  timestamptz not null default clock_timestamp()
) with (fillfactor = 50);

-- How far the tasks that were claimed have come in virtual time (Start-time Fair Queueing, Goyal, Vin and Cheng 1996).
create table crossover.virtual_time (
    one boolean primary key default true check (one),
    vt  bigint not null
) with (fillfactor = 10);
insert into crossover.virtual_time (vt) values (0);

create or replace function crossover.make_partitions(p_days integer) returns integer
language plpgsql as $$
declare
    parent text;
    part   text;
    from_day date;
    made   integer := 0;
begin
    perform pg_advisory_xact_lock(hashtextextended('crossover.partitions', 0));
    -- Whoever works with these tables waits behind an attach that waits, so it gives up soon.
    perform set_config('lock_timeout', '200ms', true);
    foreach parent in array array['payloads', 'attempts', 'sightings', 'tasks'] loop
        for from_day in select d::date from generate_series(current_date, current_date + p_days, interval '1 day') d loop
            part := format('%s_%s', parent, to_char(from_day, 'YYYYMMDD'));
            continue when to_regclass('crossover.' || part) is not null;
            begin
                execute format('create table crossover.%I (like crossover.%I including defaults including constraints)',
                    part, parent);
                execute format('alter table crossover.%I attach partition crossover.%I for values from (%L) to (%L)',
                    parent, part, from_day::timestamptz, (from_day + 1)::timestamptz);
                made := made + 1;
            exception
                when check_violation then
                    -- Rows of that day lie in the default partition, where they may stay. The other days must not wait for it.
                    raise warning 'no partition % is made: rows of that day are in crossover.%_default', part, parent;
                when lock_not_available then
                    raise warning 'no partition % is made for now: somebody reads crossover.%_default; it is tried again', part, parent;
            end;
        end loop;
    end loop;
    return made;
end $$;

-- Enqueue ----------------------------------------------------------------------------------------------------

-- Takes tasks in. Answers the ids that are new now; of accounts that are not armed nothing is taken. That needs no lock:
-- an account is left no sooner than a window after the last of its work has ended, which is longer than any statement.
create function crossover.enqueue_tasks(
    p_ids uuid[], p_created_ats timestamptz[], p_run_ats timestamptz[], p_vts bigint[], p_ranks smallint[], p_accounts text[],
    p_kinds text[], p_grps text[], p_flag_revisions text[], p_policies text[], p_payloads text[])
returns setof uuid language plpgsql as $$
declare
    v_now timestamptz := clock_timestamp();
begin
    -- In plpgsql because that keeps the plan.
    return query with given as materialized (
        select g.id, g.created_at, coalesce(g.run_at, v_now) as run_at, g.vt, g.rank, g.account, g.kind, g.grp,
            g.flag_revision, g.policy::json as policy, g.payload::json as payload
        from unnest(p_ids, p_created_ats, p_run_ats, p_vts, p_ranks, p_accounts, p_kinds, p_grps, p_flag_revisions, p_policies, p_payloads)
            as g (id, created_at, run_at, vt, rank, account, kind, grp, flag_revision, policy, payload)
        where exists (select from crossover.accounts a where a.account = g.account and a.state = 'armed')),
    taken as (
        insert into crossover.tasks (id, created_at, run_at, vt, rank, account, kind, grp, flag_revision, policy, payload)
        select id, created_at, run_at, vt, rank, account, kind, grp, flag_revision, policy, payload from given
        on conflict do nothing
        returning id, created_at, run_at, vt, rank, account, kind, grp),
    ready as (
        insert into crossover.tasks_ready (rank, vt, id, created_at, due_at, attempt, account, kind, grp)
        select rank, vt, id, created_at, run_at, 1, account, kind, grp from taken where run_at <= v_now),
    later as (
        insert into crossover.tasks_scheduled (id, due_at, created_at, vt, rank, attempt, account, kind, grp)
        select id, run_at, created_at, vt, rank, 1, account, kind, grp from taken where run_at > v_now)
    select t.id from taken t;
end $$;

-- Run and end ------------------------------------------------------------------------------------------------

-- Takes the head of what is ready for a worker that has a lease; one that has none (it was given up as dead) gets nothing,
-- because nobody would take over what it took. Reads as many rows as it takes, and those that run.
create function crossover.claim_tasks(p_worker uuid, p_limit integer)
returns table (rank smallint, vt bigint, id uuid, attempt integer, due_at timestamptz, started_at timestamptz, run_at timestamptz,
    account text, kind text, grp text, policy text, payload text, wish text)
language plpgsql
-- The plan is kept while the table grows from nothing to millions.
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
#variable_conflict use_column
begin
    perform from crossover.workers w where w.worker = p_worker for key share;
    if not found then return; end if;
    return query with head as materialized (
        select r.rank, r.vt, r.id from crossover.tasks_ready r where r.worker is null
        order by r.rank, r.vt, r.id limit p_limit for update skip locked),
    taken as (
        update crossover.tasks_ready r set worker = p_worker, started_at = clock_timestamp() from head h
        where r.rank = h.rank and r.vt = h.vt and r.id = h.id
        returning r.rank, r.vt, r.id, r.created_at, r.attempt, r.due_at, r.started_at, r.account, r.kind, r.grp, r.wish)
    select t.rank, t.vt, t.id, t.attempt, t.due_at, t.started_at, k.run_at, t.account, t.kind, t.grp, k.policy::text, k.payload::text, t.wish
    from taken t left join crossover.tasks k on k.id = t.id and k.created_at = t.created_at;
end $$;

-- Puts back, as if it had not been claimed, what a worker holds beside p_held. Waits for a claim of its that is still on its
-- way. Reads all that is ready.
create function crossover.release_tasks(p_worker uuid, p_held uuid[]) returns bigint
language plpgsql as $$
declare
    v_rows bigint;
begin
    perform from crossover.workers w where w.worker = p_worker for update;
    update crossover.tasks_ready r set worker = null, started_at = null
    where r.worker = p_worker and r.id <> all (p_held);
    get diagnostics v_rows = row_count;
    return v_rows;
end $$;

-- Takes over what a worker holds whose lease ran out, at most p_limit, and forgets the worker once it holds nothing. It has
-- lost them at this moment: their results are late. After a start of Postgres every worker has p_lease to report first.
-- Reads all that is ready, because no index knows who holds what; that is once for each dead worker.
create function crossover.take_over_tasks(p_reaper uuid, p_limit integer, p_lease interval)
returns table (rank smallint, vt bigint, id uuid, attempt integer, due_at timestamptz, started_at timestamptz, run_at timestamptz,
    account text, kind text, grp text, policy text, payload text, wish text)
language plpgsql as $$
#variable_conflict use_column
declare
    v_dead uuid;
    v_rows bigint;
begin
    if pg_postmaster_start_time() > clock_timestamp() - p_lease then return; end if;
    -- Nobody forgets the reaper before this has committed.
    perform from crossover.workers w where w.worker = p_reaper and w.lease_until > clock_timestamp() for key share;
    if not found then return; end if;
    select w.worker into v_dead from crossover.workers w
    where w.lease_until < clock_timestamp() and w.worker <> p_reaper
    order by w.lease_until limit 1 for update skip locked;
    if not found then return; end if;
    return query with lost as materialized (
        select r.rank, r.vt, r.id from crossover.tasks_ready r where r.worker = v_dead limit p_limit for update),
    taken as (
        update crossover.tasks_ready r set worker = p_reaper from lost l
        where r.rank = l.rank and r.vt = l.vt and r.id = l.id
        returning r.rank, r.vt, r.id, r.created_at, r.attempt, r.due_at, r.started_at, r.account, r.kind, r.grp, r.wish)
    select t.rank, t.vt, t.id, t.attempt, t.due_at, t.started_at, k.run_at, t.account, t.kind, t.grp, k.policy::text, k.payload::text, t.wish
    from taken t left join crossover.tasks k on k.id = t.id and k.created_at = t.created_at;
    get diagnostics v_rows = row_count;
    if v_rows < p_limit then delete from crossover.workers w where w.worker = v_dead; end if;
end $$;

-- Moves what is due from scheduled to ready, oldest first. Returns how many.
create function crossover.promote_due_tasks(p_limit integer) returns bigint
language sql as $$
    with due as materialized (
        select id from crossover.tasks_scheduled where due_at <= clock_timestamp() order by due_at limit p_limit for update skip locked),
    moved as (delete from crossover.tasks_scheduled s using due where s.id = due.id returning s.*),
    placed as (
        insert into crossover.tasks_ready (rank, vt, id, created_at, due_at, attempt, account, kind, grp)
        select rank, vt, id, created_at, due_at, attempt, account, kind, grp from moved
        on conflict do nothing returning 1)
    select count(*) from placed
$$;

-- Ends attempts that a worker holds. One that it no longer holds is left out of the answer, and nothing of it is written:
-- its result is late. What somebody asked to cancel is not tried again.
create function crossover.finish_tasks(
    p_worker uuid, p_ranks smallint[], p_vts bigint[], p_ids uuid[], p_attempts integer[], p_outcomes text[], p_permanents boolean[],
    p_retry_afters bigint[], p_retries bigint[], p_results text[], p_errors text[], p_unknowns text[])
returns setof uuid language plpgsql as $$
#variable_conflict use_column
begin
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
end $$;

-- Cancels what waits, and leaves a wish where a worker holds it. `cancelled`, `asked`, `ended`, or null for none.
create function crossover.cancel_task(p_id uuid, p_created_at timestamptz, p_reason text) returns text
language plpgsql as $$
declare
    v_task    record;
    v_due     timestamptz;
    v_attempt integer;
    v_outcome text;
begin
    select t.rank, t.vt into v_task from crossover.tasks t where t.id = p_id and t.created_at = p_created_at;
    if not found then return null; end if;
    -- It may move between two looks, which see one after the other.
    for look in 1..20 loop
        with gone as (
            delete from crossover.tasks_ready r
            where r.rank = v_task.rank and r.vt = v_task.vt and r.id = p_id and r.worker is null returning r.due_at, r.attempt),
        unscheduled as (delete from crossover.tasks_scheduled s where s.id = p_id returning s.due_at, s.attempt)
        select due_at, attempt into v_due, v_attempt from (select * from gone union all select * from unscheduled) g;
        if found then
            insert into crossover.attempts (id, due_at, started_at, ended_at, epoch, attempt, rehearsal, side, outcome, error)
            values (p_id, v_due, clock_timestamp(), clock_timestamp(), 1, v_attempt - 1, false, 'postgres', 'cancelled', p_reason);
            return 'cancelled';
        end if;
        -- Its end waits for this, and sees the wish, or it has gone before.
        update crossover.tasks_ready r set wish = coalesce(r.wish, p_reason)
        where r.rank = v_task.rank and r.vt = v_task.vt and r.id = p_id and r.worker is not null;
        if found then return 'asked'; end if;
        select a.outcome into v_outcome from crossover.attempts a
            -- The router's clock, which named it, may go before this one.
        where a.id = p_id and a.ended_at >= p_created_at - interval '1 hour' and a.retry_ms is null
        order by a.ended_at desc limit 1;
        if found then return case when v_outcome = 'cancelled' then 'cancelled' else 'ended' end; end if;
    end loop;
    raise exception using errcode = '40001', message = format('task %s moves all the time; try again', p_id);
end $$;

-- Long work ------------------------------------------------------------------------------------------------------

alter table crossover.detached add column rank smallint, add column vt bigint;
comment on column crossover.detached.vt is 'With rank: where the row of a task is. Null for what is pinned.';

-- Takes a task's attempt from the worker that holds it and gives it to its runner, as detach_from_worker does with a copy. False:
-- the worker has lost it. Repeating it changes nothing.
create function crossover.detach_task(
    p_worker uuid, p_rank smallint, p_vt bigint, p_id uuid, p_attempt integer, p_silence_ms bigint, p_left_ms bigint)
returns boolean language plpgsql as $$
declare
    v_now  timestamptz := clock_timestamp();
    v_held crossover.tasks_ready;
begin
    select * into v_held from crossover.tasks_ready r
    where r.rank = p_rank and r.vt = p_vt and r.id = p_id and r.attempt = p_attempt for update;
    if not found then return false; end if;
    if v_held.worker = crossover.detached_worker() then return true; end if;
    if v_held.worker is distinct from p_worker then return false; end if;
    insert into crossover.detached (id, epoch, attempt, silence_ms, first_due_at, due_at, started_at, detached_at, beat_at,
        run_until, pinned, side, policy, rank, vt)
    select t.id, 1, p_attempt, p_silence_ms, t.run_at, v_held.due_at, v_held.started_at, v_now, v_now,
        v_now + p_left_ms * interval '1 millisecond', true, 'postgres', coalesce(t.policy, '{}'::json), p_rank, p_vt
    from crossover.tasks t where t.id = p_id and t.created_at = v_held.created_at;
    update crossover.tasks_ready r set worker = crossover.detached_worker()
    where r.rank = p_rank and r.vt = p_vt and r.id = p_id;
    return true;
end $$;

-- The row of a task's attempt that its runner has, locked; none where it has it no more.
create function crossover.lock_detached_task(p_id uuid, p_epoch integer, p_attempt integer)
returns setof crossover.tasks_ready language plpgsql as $$
declare
    v_rank smallint;
    v_vt   bigint;
begin
    select d.rank, d.vt into v_rank, v_vt from crossover.detached d
    where d.id = p_id and d.epoch = p_epoch and d.attempt = p_attempt and d.vt is not null;
    if not found then return; end if;
    return query select * from crossover.tasks_ready r
        where r.rank = v_rank and r.vt = v_vt and r.id = p_id and r.attempt = p_attempt
            and r.worker = crossover.detached_worker() for update;
end $$;

-- The bodies are those of long work's migration, and what is no copy may be a task.
create or replace function crossover.beat_detached(
    p_id uuid, p_epoch integer, p_attempt integer,
    out answer text, out silence_ms bigint, out run_until timestamptz, out cancel_requested boolean)
language plpgsql as $$
declare
    v_now  timestamptz := clock_timestamp();
    v_held boolean;
    v_wish boolean := false;
    v_row  crossover.detached;
begin
    perform from crossover.running r
    where r.id = p_id and r.epoch = p_epoch and r.attempt = p_attempt and r.worker = crossover.detached_worker() for update;
    v_held := found;
    if not v_held then
        select true, t.wish is not null into v_held, v_wish from crossover.lock_detached_task(p_id, p_epoch, p_attempt) t;
        v_held := coalesce(v_held, false);
        v_wish := coalesce(v_wish, false);
    end if;
    select * into v_row from crossover.detached d
    where d.id = p_id and d.epoch = p_epoch and d.attempt = p_attempt for update;
    if not found then answer := 'unknown'; return; end if;
    if v_row.ended_at is not null or v_row.run_until <= v_now or v_row.side = 'postgres' and not v_held then
        answer := 'ended';
        return;
    end if;
    update crossover.detached d set beat_at = v_now where d.id = p_id and d.epoch = p_epoch and d.attempt = p_attempt;
    if v_held then
        update crossover.running r
        set lease_until = least(v_now + v_row.silence_ms * interval '1 millisecond', v_row.run_until) where r.id = p_id;
    end if;
    answer := 'kept'; silence_ms := v_row.silence_ms; run_until := v_row.run_until;
    cancel_requested := v_row.called_off or v_wish or exists (
        select from crossover.pins p where p.id = p_id and p.cancel_requested_at is not null and p.ended_at is null);
end $$;

create or replace function crossover.end_detached(
    p_id uuid, p_epoch integer, p_attempt integer, p_outcome text, p_permanent boolean, p_retry_after_ms bigint,
    p_retry_ms bigint, p_result text, p_error text)
returns boolean language plpgsql as $$
declare
    v_held boolean;
    v_task crossover.tasks_ready;
begin
    perform from crossover.running r
    where r.id = p_id and r.epoch = p_epoch and r.attempt = p_attempt and r.worker = crossover.detached_worker() for update;
    v_held := found;
    if not v_held then
        select * into v_task from crossover.lock_detached_task(p_id, p_epoch, p_attempt);
        v_held := found;
        if found then
            perform crossover.finish_tasks(crossover.detached_worker(), array[v_task.rank], array[v_task.vt], array[p_id],
                array[p_attempt], array[p_outcome], array[p_permanent], array[p_retry_after_ms], array[p_retry_ms],
                array[p_result], array[p_error], array[null::text]);
        end if;
    else
        perform crossover.finish(crossover.detached_worker(), array[p_id], array[p_attempt], array[p_outcome],
            array[p_permanent], array[p_retry_after_ms], array[p_retry_ms], array[p_result], array[p_error],
            array[null::text], array[false]);
    end if;
    update crossover.detached d set ended_at = clock_timestamp(), outcome = p_outcome, permanent = p_permanent,
        retry_after_ms = p_retry_after_ms, error = p_error,
        closed_at = case when v_held then clock_timestamp() end,
        forward_at = case when not v_held then clock_timestamp() end,
        result = case when not v_held then p_result::json end
    where d.id = p_id and d.epoch = p_epoch and d.attempt = p_attempt and d.ended_at is null
        and (v_held or d.side = 'temporal');
    if not found then return false; end if;
    if v_held and p_retry_ms is not null then
        perform crossover.cancel_instead_of_retry(array[p_id]);
    end if;
    return true;
end $$;

-- Takes over tasks whose runner has fallen silent, or took too long, for a reaper that has a lease.
create function crossover.take_over_lapsed_tasks(p_reaper uuid, p_limit integer, p_calm interval)
returns table (rank smallint, vt bigint, id uuid, attempt integer, due_at timestamptz, started_at timestamptz, run_at timestamptz,
    account text, kind text, grp text, policy text, payload text, wish text, lapsed text)
language plpgsql as $$
#variable_conflict use_column
begin
    perform from crossover.workers w where w.worker = p_reaper and w.lease_until > clock_timestamp() for key share;
    if not found then return; end if;
    return query with open as materialized (
        select d.id, d.epoch, d.attempt, d.rank, d.vt from crossover.detached d
        where d.vt is not null and d.side = 'postgres' and d.closed_at is null and d.ended_at is null
            and least(d.run_until, d.beat_at + d.silence_ms * interval '1 millisecond') < clock_timestamp()
            and crossover.may_lapse(d.id, d.epoch, d.attempt, p_calm)
        limit p_limit),
    -- The task's row first, as heartbeats do; one that came meanwhile has moved the time on.
    held as materialized (
        select r.rank, r.vt, r.id, o.epoch, o.attempt from open o
        join crossover.tasks_ready r on r.rank = o.rank and r.vt = o.vt and r.id = o.id and r.attempt = o.attempt
        where r.worker = crossover.detached_worker() for update of r skip locked),
    gone as (
        update crossover.detached d set ended_at = clock_timestamp(), closed_at = clock_timestamp(), outcome = 'failed',
            permanent = false,
            unknown = case when d.run_until <= clock_timestamp() then 'run_timeout' else 'heartbeat_timeout' end
        from held h
        where d.id = h.id and d.epoch = h.epoch and d.attempt = h.attempt and d.ended_at is null
            and least(d.run_until, d.beat_at + d.silence_ms * interval '1 millisecond') < clock_timestamp()
        returning d.id, d.rank, d.vt, d.unknown),
    taken as (
        update crossover.tasks_ready r set worker = p_reaper from gone g
        where r.rank = g.rank and r.vt = g.vt and r.id = g.id
        returning r.rank, r.vt, r.id, r.created_at, r.attempt, r.due_at, r.started_at, r.account, r.kind, r.grp, r.wish, g.unknown)
    select t.rank, t.vt, t.id, t.attempt, t.due_at, t.started_at, k.run_at, t.account, t.kind, t.grp, k.policy::text, k.payload::text,
        t.wish, t.unknown
    from taken t left join crossover.tasks k on k.id = t.id and k.created_at = t.created_at;
end $$;

-- What others see ----------------------------------------------------------------------------------------------

-- Whether a task of the account has not ended. Reads all of them: asked only while an account is being disarmed.
create function crossover.has_tasks(p_account text) returns boolean
language sql stable as $$
    select exists (select from crossover.tasks_ready r where r.account = p_account)
        or exists (select from crossover.tasks_scheduled s where s.account = p_account)
$$;

-- The body is that of the migration that made it; tasks are work that Postgres owns.
create or replace function crossover.advance(p_account text, p_generation bigint, p_window interval) returns text
language plpgsql as $$
declare
    v_account crossover.accounts;
    v_acked   boolean;
    v_owns    boolean;
    v_to      text;
begin
    perform set_config('lock_timeout', '200ms', true);
    perform pg_advisory_xact_lock(crossover.account_lock(p_account));
    select * into v_account from crossover.accounts a where a.account = p_account and a.generation = p_generation for update;
    if not found then return null; end if;
    v_acked := crossover.all_acknowledged(p_account, p_generation);
    case v_account.state
    when 'pinning' then
        if v_acked then v_to := 'window'; end if;
    when 'window' then
        if crossover.live_wanted(v_account) and crossover.window_is_over(v_account, p_window) then
            v_to := 'closing';
        end if;
    when 'closing' then
        if not crossover.live_wanted(v_account) or not crossover.window_is_over(v_account, p_window) then v_to := 'window';
        elsif v_acked then v_to := 'reconciling';
        end if;
    when 'disarming' then
        v_owns := exists (select from crossover.pins p
            where p.account = p_account and p.ended_at is null and p.owner <> 'temporal') or crossover.has_tasks(p_account);
        if v_owns = (v_account.window_from is not null) then
            update crossover.accounts a set window_from = case when not v_owns then clock_timestamp() end
            where a.account = p_account;
        elsif not v_owns and v_acked and v_account.window_from + p_window <= clock_timestamp() then
            v_to := 'open';
        end if;
        if v_to is null then
            update crossover.accounts a set driven_until = clock_timestamp() + interval '1 second' where a.account = p_account;
        end if;
    else null;
    end case;
    if v_to is null then return null; end if;
    perform crossover.change_state(p_account, v_to);
    return v_to;
end $$;

create or replace view crossover.interactions as
    select p.id, p.account, p.kind, p.key, p.series, p.series_no, p.grp, p.priority,
        case
            when p.outcome is not null then p.outcome
            when p.conflict is not null then 'held'
            when k.id is not null then 'unknown_outcome'
            when u.execute then 'running'
            when s.execute then 'scheduled'
            when r.execute then 'ready'
            when p.owner = 'temporal' and o.id is null and p.run_at <= clock_timestamp() then 'running'
            when p.owner = 'temporal' and p.run_at > clock_timestamp() then 'scheduled'
            else 'waiting'
        end as state,
        p.stage, p.owner, p.epoch, p.created_at as accepted_at, p.created_at as pinned_at, p.run_at, p.ended_at, p.attempts,
        p.outcome, coalesce(p.conflict, k.error, p.reason) as reason
    from crossover.pins p
    left join crossover.outbox o on o.id = p.id
    left join crossover.running u on u.id = p.id
    left join crossover.scheduled s on s.id = p.id
    left join crossover.ready r on r.id = p.id
    left join crossover.parked k on k.id = p.id
    union all
    select i.id, i.account, i.kind, i.key, i.series, null, coalesce(i.grp, 'default'), i.priority,
        case when i.refused_at is null then 'accepted' else 'refused' end, null, null, null, i.created_at, null, i.run_at, null,
        0, null, i.reason
    from crossover.intake i
    where not exists (select from crossover.pins p where p.id = i.id)
    union all
    select t.id, t.account, t.kind, 'task_' || replace(t.id::text, '-', ''), null, null, t.grp, -t.rank,
        case when s.id is not null then 'scheduled' when r.worker is not null then 'running' when r.id is not null then 'ready'
            else coalesce(a.outcome, 'forgotten') end,
        'complete', 'postgres', 1, t.created_at, t.created_at, t.run_at,
        case when r.id is null and s.id is null then a.ended_at end, coalesce(r.attempt - 1, s.attempt - 1, a.attempt, 0),
        case when r.id is null and s.id is null then a.outcome end, a.error
    from crossover.tasks t
    left join crossover.tasks_ready r on r.rank = t.rank and r.vt = t.vt and r.id = t.id
    left join crossover.tasks_scheduled s on s.id = t.id
    left join lateral (
        select a.outcome, a.ended_at, a.attempt, a.error from crossover.attempts a where a.id = t.id order by a.ended_at desc limit 1) a on true;

create or replace view crossover.queue_depth as
    select grp, sum(ready)::bigint as ready, sum(scheduled)::bigint as scheduled, sum(running)::bigint as running,
        sum(rehearsals)::bigint as rehearsals, min(oldest) as oldest_due_at,
        coalesce(greatest(extract(epoch from clock_timestamp() - min(oldest)), 0), 0)::float8 as oldest_seconds
    from (
        select grp, count(*) as ready, 0 as scheduled, 0 as running, count(*) filter (where not execute) as rehearsals, min(due_at) as oldest
        from crossover.ready group by grp
        union all
        select grp, 0, count(*), 0, count(*) filter (where not execute), null from crossover.scheduled group by grp
        union all
        select grp, 0, 0, count(*), count(*) filter (where not execute), null from crossover.running group by grp
        union all
        select grp, count(*) filter (where worker is null), 0, count(worker), 0, min(due_at) filter (where worker is null)
        from crossover.tasks_ready group by grp
        union all
        select grp, 0, count(*), 0, 0, null from crossover.tasks_scheduled group by grp
    ) places
    group by grp;
