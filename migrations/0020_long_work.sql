-- Long work: a runner may take an attempt away. No worker holds it then; its runner keeps it with heartbeats and ends it over
-- the API. One row an attempt says so, for whichever process is asked.
--
-- What Postgres owns stays in `running`, under a worker that is nobody: its place in its series and its group stay taken, and
-- where no heartbeat comes, it is taken over like any other. What Temporal owns is an activity that nobody works on; whoever
-- forwards tells Temporal by its token that it lives, and how it ended.
--
-- Locks: the row in `running` first, then the one here.

create table crossover.detached (
    id             uuid not null,
    epoch          integer not null,
    attempt        integer not null,
    tries          integer not null default 0,
    silence_ms     bigint not null,
    forward_ms     bigint,
    retry_after_ms bigint,
    first_due_at   timestamptz not null,
    due_at         timestamptz not null,
    started_at     timestamptz not null,
    detached_at    timestamptz not null default clock_timestamp(),
    beat_at        timestamptz not null default clock_timestamp(),
    run_until      timestamptz not null,
    forward_at     timestamptz,
    ended_at       timestamptz,
    closed_at      timestamptz,
    pinned         boolean not null,
    called_off     boolean not null default false,
    permanent      boolean,
    side           text not null check (side in ('temporal', 'postgres')),
    outcome        text check (outcome in ('succeeded', 'failed', 'cancelled')),
    unknown        text,
    error          text,
    token          bytea,
    policy         json not null,
    result         json,
    primary key (id, epoch, attempt)
) with (fillfactor = 70);
comment on table crossover.detached is 'Attempts that a runner took away. A row stays for a day after its end, so that a repeated report is known.';
comment on column crossover.detached.silence_ms is 'Without a heartbeat for so long it is lost.';
comment on column crossover.detached.first_due_at is 'When its interaction was first due, by the clock here.';
comment on column crossover.detached.run_until is 'It may run until then, whatever its heartbeats say: its run_timeout_ms.';
comment on column crossover.detached.ended_at is 'When its runner ended it, or it was lost.';
comment on column crossover.detached.closed_at is 'When that was known to the side that owns it: nothing more is to be done.';
comment on column crossover.detached.called_off is 'Temporal was asked to cancel it, by whatever means.';
create index detached_forward on crossover.detached (forward_at) where side = 'temporal' and closed_at is null;
create index detached_open on crossover.detached (side) where closed_at is null;
create index detached_closed on crossover.detached (closed_at) where closed_at is not null;

-- The worker under which `running` has what no worker holds.
create function crossover.detached_worker() returns uuid
language sql immutable parallel safe as $$ select 'de7ac4ed-0000-4000-8000-000000000000'::uuid $$;

-- Takes an attempt from the worker that holds it and gives it to its runner. False: the worker has lost it. Repeating it
-- changes nothing.
create function crossover.detach_from_worker(p_worker uuid, p_id uuid, p_attempt integer, p_silence_ms bigint, p_left_ms bigint)
returns boolean language plpgsql as $$
declare
    v_now   timestamptz := clock_timestamp();
    v_until timestamptz := v_now + p_left_ms * interval '1 millisecond';
    v_held  crossover.running;
begin
    select * into v_held from crossover.running r where r.id = p_id and r.attempt = p_attempt and r.execute for update;
    if not found then return false; end if;
    if v_held.worker = crossover.detached_worker() then return true; end if;
    if v_held.worker <> p_worker then return false; end if;
    insert into crossover.detached (id, epoch, attempt, silence_ms, first_due_at, due_at, started_at, detached_at, beat_at,
        run_until, pinned, side, policy)
    select p.id, v_held.epoch, p_attempt, p_silence_ms, p.run_at, v_held.due_at, v_held.started_at, v_now, v_now,
        v_until, true, 'postgres', y.policy
    from crossover.pins p join crossover.payloads y on y.id = p.id and y.created_at = p.created_at where p.id = p_id;
    update crossover.running r set worker = crossover.detached_worker(),
        lease_until = least(v_now + p_silence_ms * interval '1 millisecond', v_until)
    where r.id = p_id;
    return true;
end $$;

-- The same for an attempt of Temporal, which is known by its token. Of two with one fence (a reset makes them) the later counts.
create function crossover.detach_from_temporal(
    p_id uuid, p_epoch integer, p_attempt integer, p_silence_ms bigint, p_left_ms bigint, p_forward_ms bigint, p_token bytea,
    p_age_ms bigint, p_due_at timestamptz, p_started_at timestamptz, p_policy json, p_pinned boolean)
returns void language sql as $$
    insert into crossover.detached as d (id, epoch, attempt, silence_ms, forward_ms, forward_at, token, first_due_at, due_at,
        started_at, run_until, policy, pinned, side)
    values (p_id, p_epoch, p_attempt, p_silence_ms, p_forward_ms, clock_timestamp(), p_token,
        clock_timestamp() - p_age_ms * interval '1 millisecond', p_due_at,
        p_started_at, clock_timestamp() + p_left_ms * interval '1 millisecond', p_policy, p_pinned, 'temporal')
    on conflict (id, epoch, attempt) do update set silence_ms = excluded.silence_ms, forward_ms = excluded.forward_ms,
        forward_at = excluded.forward_at, token = excluded.token, due_at = excluded.due_at, started_at = excluded.started_at,
        detached_at = excluded.detached_at, beat_at = excluded.beat_at, run_until = excluded.run_until, tries = 0,
        ended_at = null, closed_at = null, called_off = false, outcome = null, permanent = null, unknown = null,
        retry_after_ms = null, result = null, error = null
    -- A worker that says it twice does not undo what the runner has said in between.
    where d.token <> excluded.token
$$;

-- A heartbeat of a runner. The answer: kept; ended (its end is known, or it was lost); unknown (there is no such row).
create function crossover.beat_detached(
    p_id uuid, p_epoch integer, p_attempt integer,
    out answer text, out silence_ms bigint, out run_until timestamptz, out cancel_requested boolean)
language plpgsql as $$
declare
    v_now  timestamptz := clock_timestamp();
    v_held boolean;
    v_row  crossover.detached;
begin
    perform from crossover.running r
    where r.id = p_id and r.epoch = p_epoch and r.attempt = p_attempt and r.worker = crossover.detached_worker() for update;
    v_held := found;
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
    cancel_requested := v_row.called_off or exists (
        select from crossover.pins p where p.id = p_id and p.cancel_requested_at is not null and p.ended_at is null);
end $$;

-- A runner ends an attempt: what Postgres owns in this transaction, what Temporal owns as soon as it is told. False: it is no
-- longer this runner's.
create function crossover.end_detached(
    p_id uuid, p_epoch integer, p_attempt integer, p_outcome text, p_permanent boolean, p_retry_after_ms bigint,
    p_retry_ms bigint, p_result text, p_error text)
returns boolean language plpgsql as $$
declare
    v_held boolean;
begin
    perform from crossover.running r
    where r.id = p_id and r.epoch = p_epoch and r.attempt = p_attempt and r.worker = crossover.detached_worker() for update;
    v_held := found;
    if v_held then
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

-- After trouble with Postgres a runner has so long to be heard of before it counts as silent.
create function crossover.patience_with(p_silence_ms bigint) returns interval
language sql immutable parallel safe as $$ select least(p_silence_ms, 60000) * interval '1 millisecond' $$;

-- Whether an attempt of Postgres whose lease has run out may be taken from its runner. p_calm: for so long whoever asks could
-- ask Postgres.
create function crossover.may_lapse(p_id uuid, p_epoch integer, p_attempt integer, p_calm interval) returns boolean
language sql stable as $$
    select not exists (
        select from crossover.detached d
        where d.id = p_id and d.epoch = p_epoch and d.attempt = p_attempt and d.run_until > clock_timestamp() and (
            p_calm < crossover.patience_with(d.silence_ms)
            or pg_postmaster_start_time() > clock_timestamp() - crossover.patience_with(d.silence_ms)))
$$;

-- The runner of an attempt of Postgres that was taken over has fallen silent, or took too long: which of both. Null: it was
-- no runner's.
create function crossover.lapse_detached(p_id uuid, p_epoch integer, p_attempt integer) returns text
language sql as $$
    update crossover.detached d set ended_at = clock_timestamp(), closed_at = clock_timestamp(), outcome = 'failed',
        permanent = false, unknown = case when d.run_until <= clock_timestamp() then 'run_timeout' else 'heartbeat_timeout' end
    where d.id = p_id and d.epoch = p_epoch and d.attempt = p_attempt and d.side = 'postgres' and d.ended_at is null
    returning d.unknown
$$;

-- Takes attempts of which Temporal is to be told: an end for p_lease, that they live until the next time is due. Those
-- whose runner is silent, or took too long, have ended by that, unless this process could not ask Postgres just before
-- (p_calm: for so long it could).
create function crossover.take_detached(p_limit integer, p_lease interval, p_calm interval)
returns setof crossover.detached language sql as $$
    with due as materialized (
        select d.id, d.epoch, d.attempt, case
            when d.ended_at is not null then null
            when d.run_until <= clock_timestamp() then 'run_timeout'
            when d.beat_at + d.silence_ms * interval '1 millisecond' <= clock_timestamp()
                and p_calm >= crossover.patience_with(d.silence_ms)
                and pg_postmaster_start_time() <= clock_timestamp() - crossover.patience_with(d.silence_ms)
                then 'heartbeat_timeout' end as lapsed
        from crossover.detached d
        where d.side = 'temporal' and d.closed_at is null and d.forward_at <= clock_timestamp()
        order by d.forward_at limit p_limit for update skip locked)
    update crossover.detached d
    set ended_at = case when due.lapsed is null then d.ended_at else clock_timestamp() end,
        outcome = case when due.lapsed is null then d.outcome else 'failed' end,
        permanent = case when due.lapsed is null then d.permanent else false end,
        unknown = coalesce(due.lapsed, d.unknown),
        tries = d.tries + case when due.lapsed is null and d.ended_at is null then 0 else 1 end,
        -- Also when its time is over, so that this is known here before Temporal cuts it.
        forward_at = case when due.lapsed is null and d.ended_at is null
            then least(clock_timestamp() + d.forward_ms * interval '1 millisecond', greatest(
                least(d.run_until, d.beat_at + d.silence_ms * interval '1 millisecond'),
                clock_timestamp() + interval '250 milliseconds'))
            else clock_timestamp() + p_lease end
    from due where d.id = due.id and d.epoch = due.epoch and d.attempt = due.attempt
    returning d.*
$$;

-- Temporal's rehearsals -----------------------------------------------------------------------------------------

-- A rehearsal ends by itself when nothing was heard of its real run for so long; while that runs, the mirror says so.
alter table crossover.rehearsals add column bound interval, add column beat_at timestamptz;
comment on column crossover.rehearsals.bound is 'For so long it occupies without word of its real run.';
comment on column crossover.rehearsals.beat_at is 'When Temporal is next told that the real run goes on, if it does.';

-- Rehearsals whose real run goes on, of which Temporal has not been told for a while.
create function crossover.beat_rehearsals(p_limit integer) returns setof crossover.rehearsals
language sql as $$
    with due as materialized (
        select r.id, r.epoch, r.attempt from crossover.rehearsals r
        join crossover.running u on u.id = r.id and u.execute and u.epoch = r.epoch and u.attempt = r.attempt
        where r.beat_at <= clock_timestamp() and u.lease_until > clock_timestamp()
        order by r.beat_at limit p_limit for update of r skip locked)
    update crossover.rehearsals r set beat_at = clock_timestamp() + r.bound / 4, bound_at = clock_timestamp() + r.bound
    from due where r.id = due.id and r.epoch = due.epoch and r.attempt = due.attempt
    returning r.*
$$;

-- The sweep --------------------------------------------------------------------------------------------------------

-- Finds work that Temporal owns and should long have ended; the body is that of the first migration, and what is away with its
-- runner is no such work: whoever forwards knows that Temporal has it. A series would be sent its members again and again for
-- as long as its head is away.
create or replace function crossover.sweep(p_after interval, p_limit integer) returns bigint
language sql as $$
    with stuck as materialized (
        select p.id, p.series_id from crossover.pins p
        where p.ended_at is null and p.owner = 'temporal' and p.run_at < clock_timestamp() - p_after
            and coalesce(p.swept_at, p.created_at) < clock_timestamp() - p_after and p.conflict is null
            and (p.series_id is null or p.series_no =
                (select s.head_no from crossover.series s where s.series_id = p.series_id))
            and not exists (select from crossover.outbox o where o.id = p.id)
            and not exists (select from crossover.detached d where d.id = p.id and d.closed_at is null)
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
