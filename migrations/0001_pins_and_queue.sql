-- The ledger (accounts, pins, series, outbox, attempts) and the queue (ready, scheduled, running).
--
-- Each step of the protocol that must be atomic is one function, so that it costs one round trip and that a
-- program in another language takes the same steps. ARCHITECTURE.md has the invariants; the modules `ledger` and
-- `queue` call these functions and nobody else does.

create schema if not exists crossover;

-- Names the interaction of (account, key). `interaction::interaction_id` computes the same: a version 8 UUID
-- made of the first 16 bytes of SHA-256 over account, a NUL and key.
create function crossover.interaction_id(p_account text, p_key text) returns uuid
language sql immutable strict parallel safe as $$
    select encode(
        set_byte(set_byte(substring(d for 16), 6, get_byte(d, 6) & 15 | 128), 8, get_byte(d, 8) & 63 | 128), 'hex')::uuid
    from (select sha256(convert_to(p_account, 'UTF8') || '\x00'::bytea || convert_to(p_key, 'UTF8')) as d) digest
$$;

-- Accounts ---------------------------------------------------------------------------------------------------

-- What is known of an account's past. Until arming exists both marks are final, and at most one is ever set.
create table crossover.accounts (
    account     text primary key,
    created_at  timestamptz not null default clock_timestamp(),
    unpinned_at timestamptz,
    armed_at    timestamptz,
    check (unpinned_at is null or armed_at is null)
);
comment on column crossover.accounts.unpinned_at is 'When work of this account was first started without a pin. It cannot go live.';
comment on column crossover.accounts.armed_at is 'Since when Postgres may own work of this account: every enqueue pins first.';

-- Pins -------------------------------------------------------------------------------------------------------

create table crossover.pins (
    id            uuid primary key check (id = crossover.interaction_id(account, key)),
    created_at    timestamptz not null default clock_timestamp(),
    run_at        timestamptz not null,
    ended_at      timestamptz,
    series_id     uuid,
    series_no     bigint,
    epoch         integer not null default 1,
    attempts      integer not null default 0,
    weight        integer not null,
    swept_at      timestamptz,
    priority      smallint not null default 0 check (priority between -100 and 100),
    on_temporal   boolean not null,
    on_postgres   boolean not null,
    stage         text not null check (stage in ('off', 'shadow', 'live', 'complete')),
    owner         text not null check (owner in ('temporal', 'postgres', 'moving')),
    outcome       text check (outcome in ('succeeded', 'failed', 'cancelled', 'expired')),
    account       text not null,
    kind          text not null,
    key           text not null,
    series        text,
    grp           text not null,
    flag_revision text not null,
    payload_hash  bytea not null,
    reason        text,
    conflict      text,
    check ((series_id is null) = (series_no is null)),
    check ((ended_at is null) = (outcome is null)),
    check (on_temporal or on_postgres)
) with (fillfactor = 80);
comment on table crossover.pins is 'The recorded decision which side owns an interaction. One row for each, first insert wins.';
comment on column crossover.pins.attempts is 'Attempts of the owner that have ended.';
comment on column crossover.pins.weight is 'Bytes of its envelope, about: what a series may have with Temporal at a time is bounded by them.';
comment on column crossover.pins.conflict is 'Set where Temporal holds another copy under this id: the Postgres copy is held.';

create unique index pins_series on crossover.pins (series_id, series_no) where series_id is not null;
create index pins_unended on crossover.pins (account, kind) where ended_at is null;
-- For the sweep.
create index pins_with_temporal on crossover.pins (run_at) where ended_at is null and owner = 'temporal';

-- Written once with the pin, dropped by partition.
create table crossover.payloads (
    id         uuid not null,
    created_at timestamptz not null,
    payload    json not null,
    policy     json not null,
    primary key (id, created_at)
) partition by range (created_at);

-- One row an attempt of either side, executions and rehearsals, written when it has ended.
create table crossover.attempts (
    id             uuid not null,
    due_at         timestamptz not null,
    started_at     timestamptz not null,
    ended_at       timestamptz not null,
    epoch          integer not null,
    attempt        integer not null,
    rehearsal      boolean not null,
    permanent      boolean,
    retry_after_ms bigint,
    retry_ms       bigint,
    side           text not null check (side in ('temporal', 'postgres')),
    outcome        text check (outcome in ('succeeded', 'failed', 'cancelled', 'expired')),
    result         json,
    error          text
) partition by range (ended_at);
create index attempts_id on crossover.attempts (id);

-- Catch what no dated partition takes; empty as long as partitions are made ahead.
create table crossover.payloads_default partition of crossover.payloads default;
create table crossover.attempts_default partition of crossover.attempts default;

-- Makes the partitions of today and the next p_days days. A partition is built aside and then attached, which
-- locks the parent only against other changes of its shape.
create function crossover.make_partitions(p_days integer) returns integer
language plpgsql as $$
declare
    parent text;
    part   text;
    from_day date;
    made   integer := 0;
begin
    perform pg_advisory_xact_lock(hashtextextended('crossover.partitions', 0));
    foreach parent in array array['payloads', 'attempts'] loop
        for from_day in select d::date from generate_series(current_date, current_date + p_days, interval '1 day') d loop
            part := format('%s_%s', parent, to_char(from_day, 'YYYYMMDD'));
            continue when to_regclass('crossover.' || part) is not null;
            begin
                execute format('create table crossover.%I (like crossover.%I including defaults including constraints)',
                    part, parent);
                execute format('alter table crossover.%I attach partition crossover.%I for values from (%L) to (%L)',
                    parent, part, from_day::timestamptz, (from_day + 1)::timestamptz);
                made := made + 1;
            exception when check_violation then
                -- Rows of that day lie in the default partition, where they may stay. The other days must not wait for it.
                raise warning 'no partition % is made: rows of that day are in crossover.%_default', part, parent;
            end;
        end loop;
    end loop;
    return made;
end $$;

-- Series -----------------------------------------------------------------------------------------------------

-- Numbers are handed out without gaps under the row's lock; head_no is the lowest that has not ended, so that
-- «have all earlier members ended» is one comparison.
create table crossover.series (
    series_id uuid primary key,
    last_no   bigint not null default 0,
    head_no   bigint not null default 1,
    account   text not null,
    kind      text not null,
    series    text not null
) with (fillfactor = 50);

-- Whether a member may be with Temporal yet. A series is one workflow there, whose history and whose carried state are
-- bounded, so only so many of its members are with it at a time, and of big ones only the head.
create function crossover.deliverable(p_series_id uuid, p_no bigint, p_head bigint) returns boolean
language sql stable as $$
    select p_series_id is null or p_no <= p_head or (p_no < p_head + 100 and
        (select sum(p.weight) from crossover.pins p
         where p.series_id = p_series_id and p.series_no between p_head and p_no) <= 600000)
$$;

-- Outbox and Temporal's rehearsals ---------------------------------------------------------------------------

-- A Temporal copy that has not been delivered yet.
create table crossover.outbox (
    id         uuid primary key,
    due_at     timestamptz not null,
    created_at timestamptz not null default clock_timestamp(),
    series_id  uuid,
    series_no  bigint,
    epoch      integer not null,
    tries      integer not null default 0,
    behind     uuid[] not null,
    last_error text
) with (fillfactor = 70);
comment on column crossover.outbox.behind is 'Earlier unended members of the series that Postgres owns, as at the pin.';
create index outbox_due on crossover.outbox (due_at);
create unique index outbox_series on crossover.outbox (series_id, series_no) where series_id is not null;

-- A rehearsal on Temporal that occupies its place until the real attempt of the same number has ended.
create table crossover.rehearsals (
    id          uuid not null,
    epoch       integer not null,
    attempt     integer not null,
    due_at      timestamptz not null,
    dequeued_at timestamptz not null,
    bound_at    timestamptz not null,
    taken_until timestamptz not null default '-infinity',
    token       bytea not null,
    primary key (id, epoch, attempt)
) with (fillfactor = 70);
comment on column crossover.rehearsals.taken_until is 'Until then a mirror is telling Temporal how it ended.';

-- The queue --------------------------------------------------------------------------------------------------

-- What can start now, and nothing else: a claim reads the head of an index and never filters.
create table crossover.ready (
    seq     bigint generated always as identity,
    id      uuid not null unique,
    due_at  timestamptz not null,
    attempt integer not null,
    rank    smallint not null,
    execute boolean not null,
    grp     text not null,
    primary key (rank, seq)
);
comment on column crossover.ready.rank is 'Minus the priority, so that the index ascends.';
comment on column crossover.ready.attempt is 'The number that the next attempt has.';
comment on column crossover.ready.execute is 'False: a rehearsal.';
-- For a worker whose slots are full of rehearsals that may give way to an execution, and to nothing else.
create index ready_executions on crossover.ready (rank, seq) where execute;

-- What must not start before due_at: a future run_at, or the wait before another attempt.
create table crossover.scheduled (
    id      uuid primary key,
    due_at  timestamptz not null,
    attempt integer not null,
    rank    smallint not null,
    execute boolean not null,
    grp     text not null
);
create index scheduled_due on crossover.scheduled (due_at);

-- What a worker holds. Small, rewritten by every heartbeat: no index on the lease, room for HOT updates.
create table crossover.running (
    id          uuid primary key,
    lease_until timestamptz not null,
    due_at      timestamptz not null,
    started_at  timestamptz not null,
    epoch       integer not null,
    attempt     integer not null,
    rank        smallint not null,
    execute     boolean not null,
    worker      uuid not null,
    grp         text not null
) with (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 1000);

-- Puts copies where they belong: ready, or scheduled where they are due later.
create function crossover.place(p_id uuid, p_due_at timestamptz, p_attempt integer, p_priority smallint, p_execute boolean, p_grp text)
returns void language plpgsql as $$
begin
    if p_due_at > clock_timestamp() then
        insert into crossover.scheduled (id, due_at, attempt, rank, execute, grp)
        values (p_id, p_due_at, p_attempt, -p_priority, p_execute, p_grp);
    else
        insert into crossover.ready (id, due_at, attempt, rank, execute, grp)
        values (p_id, p_due_at, p_attempt, -p_priority, p_execute, p_grp);
    end if;
end $$;

-- Enqueue ----------------------------------------------------------------------------------------------------

-- The lock that pins of an account share and that a change of its marks excludes. It writes nothing.
create function crossover.account_lock(p_account text) returns bigint
language sql immutable strict parallel safe as $$ select hashtextextended('crossover.account ' || p_account, 0) $$;

-- Asks to start work of an account without a pin. False: it is armed, so the work must be pinned.
-- The mark commits before the start, so an account that ever had unpinned work is known to have had it.
create function crossover.mark_unpinned(p_account text) returns boolean
language plpgsql as $$
declare
    armed boolean;
begin
    perform pg_advisory_xact_lock(crossover.account_lock(p_account));
    insert into crossover.accounts as a (account, unpinned_at) values (p_account, clock_timestamp())
    on conflict (account) do update
        set unpinned_at = case when a.armed_at is null then coalesce(a.unpinned_at, clock_timestamp()) end
    returning armed_at is not null into armed;
    return not armed;
end $$;

-- Pins an interaction: its pin, its Postgres copy and an outbox row for its Temporal copy, or what is there
-- already. The stage is what the flags say; the pin's own is lower where the account may not go live.
create function crossover.pin(
    p_account text, p_key text, p_kind text, p_stage text, p_flag_revision text,
    p_series text, p_series_id uuid, p_grp text, p_priority smallint, p_run_at timestamptz,
    p_payload_hash bytea, p_payload json, p_policy json, p_weight integer, p_grace interval,
    out created boolean, out direct boolean, out pin crossover.pins, out behind uuid[])
language plpgsql as $$
declare
    v_id      uuid := crossover.interaction_id(p_account, p_key);
    v_now     timestamptz := clock_timestamp();
    v_run_at  timestamptz := coalesce(p_run_at, v_now);
    v_live    boolean := p_stage in ('live', 'complete');
    v_account crossover.accounts;
    v_stage   text := p_stage;
    v_no      bigint;
    v_head    bigint;
begin
    created := false; direct := false; behind := '{}';
    select * into pin from crossover.pins where id = v_id;
    if found then return; end if;

    -- The account's marks. The first live pin of an account that never had unpinned work arms it: no router can
    -- have started anything of it unpinned, because that takes the mark, and the mark takes this lock.
    select * into v_account from crossover.accounts where account = p_account;
    if v_account.account is null or (v_live and v_account.armed_at is null and v_account.unpinned_at is null) then
        perform pg_advisory_xact_lock(crossover.account_lock(p_account));
        insert into crossover.accounts as a (account, armed_at) values (p_account, case when v_live then v_now end)
        on conflict (account) do update
            set armed_at = case when a.unpinned_at is null and v_live then coalesce(a.armed_at, v_now) else a.armed_at end
        returning * into v_account;
    else
        perform pg_advisory_xact_lock_shared(crossover.account_lock(p_account));
        select * into v_account from crossover.accounts where account = p_account;
    end if;
    if v_live and v_account.armed_at is null then v_stage := 'shadow'; end if;

    -- Members of a series are chained under its row's lock, which lasts until the commit: numbers have no gaps
    -- and commit in order.
    if p_series_id is not null then
        insert into crossover.series (series_id, account, kind, series)
        values (p_series_id, p_account, p_kind, p_series) on conflict do nothing;
        select last_no + 1, head_no into v_no, v_head from crossover.series where series_id = p_series_id for update;
    end if;

    insert into crossover.pins (id, created_at, run_at, series_id, series_no, weight, priority, on_temporal, on_postgres, stage,
        owner, account, kind, key, series, grp, flag_revision, payload_hash)
    values (v_id, v_now, v_run_at, p_series_id, v_no, p_weight, p_priority, v_stage <> 'complete', v_stage <> 'off', v_stage,
        case when v_stage in ('live', 'complete') then 'postgres' else 'temporal' end,
        p_account, p_kind, p_key, p_series, p_grp, p_flag_revision, p_payload_hash)
    on conflict (id) do nothing returning * into pin;
    if not found then
        select * into pin from crossover.pins where id = v_id;
        return;
    end if;
    created := true;
    insert into crossover.payloads (id, created_at, payload, policy) values (v_id, v_now, p_payload, p_policy);

    if p_series_id is not null then
        update crossover.series set last_no = v_no where series_id = p_series_id;
    end if;
    if pin.on_postgres and (v_no is null or v_no = v_head) then
        perform crossover.place(v_id, v_run_at, 1, p_priority, pin.owner = 'postgres', p_grp);
    end if;

    if pin.on_temporal then
        direct := true;
        if v_no is not null then
            direct := not exists (select from crossover.outbox o where o.series_id = p_series_id)
                and crossover.deliverable(p_series_id, v_no, v_head);
            -- Postgres ends its members in order, so the latest of them stand for all.
            behind := array(
                select p.id from crossover.pins p
                where p.series_id = p_series_id and p.series_no >= v_head and p.series_no < v_no
                    and p.ended_at is null and p.owner <> 'temporal'
                order by p.series_no desc limit 64);
        end if;
        insert into crossover.outbox (id, due_at, series_id, series_no, epoch, behind)
        values (v_id, case when direct then v_now + p_grace else v_now end, p_series_id, v_no, pin.epoch, behind);
    end if;
end $$;

-- Run and end ------------------------------------------------------------------------------------------------

-- Ends pins of one owner, each under its epoch, moves the heads of their series on, and places the new heads'
-- copies. Returns the ids that this call ended; one that had ended before, or has another owner or epoch, is left out.
create function crossover.end_pins(p_owner text, p_ids uuid[], p_epochs integer[], p_attempts integer[], p_outcomes text[], p_reasons text[])
returns setof uuid language plpgsql as $$
declare
    v_ended  uuid[];
    v_series uuid[];
    v_heads  bigint[];
begin
    with ended as (
        update crossover.pins p
        set ended_at = clock_timestamp(), outcome = e.outcome, reason = e.reason, attempts = greatest(p.attempts, e.attempt)
        from unnest(p_ids, p_epochs, p_attempts, p_outcomes, p_reasons) as e (id, epoch, attempt, outcome, reason)
        where p.id = e.id and p.epoch = e.epoch and p.owner = p_owner and p.ended_at is null
        returning p.id, p.series_id)
    select array_agg(id), array_agg(distinct series_id) filter (where series_id is not null) into v_ended, v_series from ended;

    if v_series is not null then
        -- In one order everywhere, so that two batches never wait for each other.
        perform from crossover.series where series_id = any (v_series) order by series_id for update;
        with heads as (
            select s.series_id, coalesce(
                (select min(p.series_no) from crossover.pins p
                 where p.series_id = s.series_id and p.series_no >= s.head_no and p.ended_at is null), s.last_no + 1) as head_no
            from crossover.series s where s.series_id = any (v_series)),
        moved as (
            update crossover.series s set head_no = h.head_no from heads h
            where s.series_id = h.series_id and s.head_no < h.head_no returning s.series_id, s.head_no)
        select array_agg(series_id), array_agg(head_no) into v_series, v_heads from moved;
        -- Its turn has come, so it is due from now on: what it waited behind others is not the queue's delay.
        perform crossover.place(p.id, greatest(p.run_at, clock_timestamp()), p.attempts + 1, p.priority, p.owner = 'postgres', p.grp)
        from unnest(v_series, v_heads) as m (series_id, head_no)
        join crossover.pins p on p.series_id = m.series_id and p.series_no = m.head_no
        where p.on_postgres and p.conflict is null;
    end if;
    return query select unnest(v_ended);
end $$;

-- Moves what is due from scheduled to ready, oldest first. Returns how many.
create function crossover.promote_due(p_limit integer) returns bigint
language sql as $$
    with due as materialized (
        select id from crossover.scheduled where due_at <= clock_timestamp() order by due_at limit p_limit for update skip locked),
    moved as (delete from crossover.scheduled s using due where s.id = due.id returning s.*),
    placed as (
        insert into crossover.ready (id, due_at, attempt, rank, execute, grp)
        select id, due_at, attempt, rank, execute, grp from moved order by due_at returning 1)
    select count(*) from placed
$$;

-- Ends attempts that a worker holds. One that it no longer holds (its lease ran out and another took it over) is
-- left out of the answer, and nothing of it is written: its result is late.
create function crossover.finish(
    p_worker uuid, p_ids uuid[], p_attempts integer[], p_outcomes text[], p_permanents boolean[], p_retry_afters bigint[],
    p_retries bigint[], p_results text[], p_errors text[])
returns setof uuid language plpgsql as $$
declare
    v_now      timestamptz := clock_timestamp();
    v_held     uuid[];
    v_ids      uuid[];
    v_epochs   integer[];
    v_attempts integer[];
    v_outcomes text[];
    v_errors   text[];
begin
    -- In one order, as heartbeats do, so that the two never wait for each other.
    perform from crossover.running where id = any (p_ids) order by id for update;
    with held as (
        delete from crossover.running r
        using unnest(p_ids, p_attempts, p_outcomes, p_permanents, p_retry_afters, p_retries, p_results, p_errors)
            as f (id, attempt, outcome, permanent, retry_after_ms, retry_ms, result, error)
        where r.id = f.id and r.attempt = f.attempt and r.worker = p_worker
        returning r.id, r.due_at, r.started_at, r.epoch, r.attempt, r.rank, r.execute, r.grp,
            f.outcome, f.permanent, f.retry_after_ms, f.retry_ms, f.result, f.error),
    recorded as (
        insert into crossover.attempts (id, due_at, started_at, ended_at, epoch, attempt, rehearsal, permanent,
            retry_after_ms, retry_ms, side, outcome, result, error)
        select id, due_at, started_at, v_now, epoch, attempt, not execute, permanent,
            retry_after_ms, retry_ms, 'postgres', outcome, result::json, error from held),
    again as (
        insert into crossover.scheduled (id, due_at, attempt, rank, execute, grp)
        select id, v_now + retry_ms * interval '1 millisecond', attempt + 1, rank, execute, grp
        from held where retry_ms is not null),
    counted as (
        update crossover.pins p set attempts = h.attempt from held h
        where p.id = h.id and h.execute and h.retry_ms is not null),
    ends as (select * from held where execute and retry_ms is null)
    select (select array_agg(id) from held), array_agg(id), array_agg(epoch), array_agg(attempt), array_agg(outcome), array_agg(error)
    into v_held, v_ids, v_epochs, v_attempts, v_outcomes, v_errors from ends;

    perform crossover.end_pins('postgres', v_ids, v_epochs, v_attempts, v_outcomes, v_errors);
    return query select unnest(v_held);
end $$;

-- Finds work that Temporal owns and should long have ended, and has it delivered again: Temporal drops the repetition
-- where it has the copy, runs it where it lost it, and tells where the copy was ended from outside. Of a series only
-- the head can be stuck; what was delivered behind it goes again with it, in the chain's order, because it may be lost as well.
create function crossover.sweep(p_after interval, p_limit integer) returns bigint
language sql as $$
    with stuck as materialized (
        select p.id, p.series_id from crossover.pins p
        where p.ended_at is null and p.owner = 'temporal' and p.run_at < clock_timestamp() - p_after
            and coalesce(p.swept_at, p.created_at) < clock_timestamp() - p_after and p.conflict is null
            and (p.series_id is null or p.series_no =
                (select s.head_no from crossover.series s where s.series_id = p.series_id))
            and not exists (select from crossover.outbox o where o.id = p.id)
        order by p.run_at limit p_limit for update of p skip locked),
    marked as (update crossover.pins p set swept_at = clock_timestamp() from stuck where p.id = stuck.id),
    again as (
        insert into crossover.outbox (id, due_at, series_id, series_no, epoch, behind)
        select p.id, clock_timestamp(), p.series_id, p.series_no, p.epoch, array(
            select e.id from crossover.pins e
            where e.series_id = p.series_id and e.series_no < p.series_no and e.ended_at is null and e.owner <> 'temporal'
            order by e.series_no desc limit 64)
        from stuck join crossover.pins p on p.id = stuck.id or p.series_id = stuck.series_id
        where p.ended_at is null and p.owner = 'temporal' and p.conflict is null
        on conflict do nothing returning 1)
    select count(*) from again
$$;
