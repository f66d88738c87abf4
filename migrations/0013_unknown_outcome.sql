-- Attempts of which nobody knows whether they had their effect, and what is parked after one of them.
--
-- What is parked has not ended, and no worker holds it: a person says what came of it, and until then its series waits.
-- What Postgres owns is resolved in the transaction that asks for it. What Temporal owns only Temporal can go on with, so
-- the answer is written down here and told by the relay; its workflow waits for it.

alter table crossover.attempts add column unknown text;
comment on column crossover.attempts.unknown is 'Why it is unknown whether it had its effect: connection, run_timeout, heartbeat_timeout, worker. Else null.';

create table crossover.parked (
    id         uuid primary key,
    since      timestamptz not null default clock_timestamp(),
    asked_at   timestamptz,
    due_at     timestamptz not null default clock_timestamp(),
    epoch      integer not null,
    attempt    integer not null,
    tries      integer not null default 0,
    rank       smallint not null,
    side       text not null check (side in ('temporal', 'postgres')),
    cause      text not null,
    grp        text not null,
    error      text,
    answer     text check (answer in ('succeeded', 'failed', 'retry')),
    result     json,
    reason     text,
    last_error text
) with (fillfactor = 70);
comment on table crossover.parked is 'Interactions whose state is unknown_outcome. A row goes when its interaction ends or runs again.';
comment on column crossover.parked.answer is 'What a person said, where Temporal owns it: on its way there.';
comment on column crossover.parked.due_at is 'When the relay tells Temporal the answer, for the first time or again.';
create index parked_due on crossover.parked (due_at) where answer is not null;

-- What people said.
create table crossover.resolutions (
    id        uuid not null,
    at        timestamptz not null default clock_timestamp(),
    parked_at timestamptz not null,
    epoch     integer not null,
    attempt   integer not null,
    side      text not null,
    cause     text not null,
    answer    text not null check (answer in ('succeeded', 'failed', 'retry')),
    reason    text,
    who       text not null,
    primary key (id, epoch, attempt)
);
comment on table crossover.resolutions is 'Every answer to a parked attempt: who said what, when and why.';

-- Ends attempts that a worker holds; the body is that of the first migration, and what is to be parked is.
create function crossover.finish(
    p_worker uuid, p_ids uuid[], p_attempts integer[], p_outcomes text[], p_permanents boolean[], p_retry_afters bigint[],
    p_retries bigint[], p_results text[], p_errors text[], p_unknowns text[], p_parks boolean[])
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
        using unnest(p_ids, p_attempts, p_outcomes, p_permanents, p_retry_afters, p_retries, p_results, p_errors,
                p_unknowns, p_parks)
            as f (id, attempt, outcome, permanent, retry_after_ms, retry_ms, result, error, unknown, park)
        where r.id = f.id and r.attempt = f.attempt and r.worker = p_worker
        returning r.id, r.due_at, r.started_at, r.epoch, r.attempt, r.rank, r.execute, r.grp,
            f.outcome, f.permanent, f.retry_after_ms, f.retry_ms, f.result, f.error, f.unknown,
            coalesce(f.park, false) and r.execute and f.retry_ms is null as park),
    recorded as (
        insert into crossover.attempts (id, due_at, started_at, ended_at, epoch, attempt, rehearsal, permanent,
            retry_after_ms, retry_ms, side, outcome, result, error, unknown)
        select id, due_at, started_at, v_now, epoch, attempt, not execute, permanent,
            retry_after_ms, retry_ms, 'postgres', outcome, result::json, error, unknown from held),
    again as (
        insert into crossover.scheduled (id, due_at, attempt, rank, execute, grp)
        select id, v_now + retry_ms * interval '1 millisecond', attempt + 1, rank, execute, grp
        from held where retry_ms is not null),
    put_aside as (
        insert into crossover.parked (id, since, epoch, attempt, rank, side, cause, grp, error)
        select id, v_now, epoch, attempt, rank, 'postgres', coalesce(unknown, 'worker'), grp, error from held where park),
    counted as (
        update crossover.pins p set attempts = h.attempt from held h
        where p.id = h.id and h.execute and (h.retry_ms is not null or h.park)),
    ends as (select * from held where execute and retry_ms is null and not park)
    select (select array_agg(id) from held), array_agg(id), array_agg(epoch), array_agg(attempt), array_agg(outcome), array_agg(error)
    into v_held, v_ids, v_epochs, v_attempts, v_outcomes, v_errors from ends;

    perform crossover.end_pins('postgres', v_ids, v_epochs, v_attempts, v_outcomes, v_errors);
    return query select unnest(v_held);
end $$;

-- For processes of the version before, which park nothing.
create or replace function crossover.finish(
    p_worker uuid, p_ids uuid[], p_attempts integer[], p_outcomes text[], p_permanents boolean[], p_retry_afters bigint[],
    p_retries bigint[], p_results text[], p_errors text[])
returns setof uuid language sql as $$
    select * from crossover.finish(p_worker, p_ids, p_attempts, p_outcomes, p_permanents, p_retry_afters, p_retries, p_results,
        p_errors, null::text[], null::boolean[])
$$;

-- Ends pins; the body is that of the first migration, and what has ended is no longer parked.
create or replace function crossover.end_pins(p_owner text, p_ids uuid[], p_epochs integer[], p_attempts integer[], p_outcomes text[], p_reasons text[])
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
    -- However it ended: nobody needs to say any longer what came of it.
    delete from crossover.parked k where k.id = any (v_ended);
    return query select unnest(v_ended);
end $$;

-- Cancels; the body is that of the handover's migration, and parked is one of the places where it may be.
create or replace function crossover.cancel(p_id uuid, p_reason text, out answer text, out pin crossover.pins)
language plpgsql as $$
declare
    v_head  bigint;
    v_tries integer := 0;
begin
    select * into pin from crossover.pins where id = p_id for update;
    if not found then return; end if;
    answer := case when pin.outcome = 'cancelled' then 'cancelled' when pin.ended_at is not null then 'ended' end;
    if answer is not null then return; end if;

    -- What is moving is cancelled by whoever completes the move.
    if pin.owner = 'moving' or pin.owner = 'temporal' and pin.conflict is null then
        answer := 'asked';
    else
        if pin.series_id is not null then
            select head_no into v_head from crossover.series where series_id = pin.series_id for update;
        end if;
        -- A claim, a promotion and a hand-back move the copy from place to place, each in one statement that this waits
        -- for; so it is in one of them, or comes by again.
        loop
            delete from crossover.scheduled where id = p_id;
            exit when found;
            delete from crossover.ready where id = p_id;
            exit when found;
            delete from crossover.parked where id = p_id and side = 'postgres';
            exit when found;
            if exists (select from crossover.running where id = p_id and execute) then
                answer := 'asked';
                exit;
            end if;
            exit when pin.conflict is not null or pin.series_no > v_head;
            v_tries := v_tries + 1;
            if v_tries > 20 then
                raise exception 'the copy of % is in no place', p_id using errcode = 'lock_not_available';
            end if;
        end loop;
        if answer is null then
            answer := 'cancelled';
            perform crossover.end_pins(pin.owner, array[p_id], array[pin.epoch], array[0], array['cancelled'],
                array[coalesce(pin.cancel_reason, p_reason)]);
        end if;
    end if;

    update crossover.pins set cancel_requested_at = coalesce(cancel_requested_at, clock_timestamp()),
        cancel_reason = coalesce(cancel_reason, p_reason)
    where id = p_id returning * into pin;
    -- An execution is called off, and a rehearsal needs no longer occupy its place. What runs on Postgres is told by its
    -- worker's heartbeat, and its rehearsal mirrors its end, whichever that is.
    if pin.on_temporal and pin.conflict is null and (pin.owner = 'temporal' or answer = 'cancelled') then
        insert into crossover.outbox as o (id, due_at, series_id, series_no, epoch, behind, cancel)
        values (p_id, clock_timestamp(), pin.series_id, pin.series_no, pin.epoch, '{}', true)
        on conflict (id) do update set due_at = excluded.due_at, cancel = true;
    end if;
end $$;

-- Parks what Temporal owns, with the attempt after which that is. False: this attempt is known to have ended, or it is not
-- Temporal's under this epoch, so nothing was written; its workflow asks again until it is answered.
create function crossover.park(
    p_id uuid, p_epoch integer, p_attempt integer, p_cause text, p_error text, p_due_at timestamptz, p_started_at timestamptz)
returns boolean language plpgsql as $$
declare
    v_pin crossover.pins;
begin
    update crossover.pins p set attempts = p_attempt
    where p.id = p_id and p.epoch = p_epoch and p.attempts < p_attempt and p.owner = 'temporal' and p.ended_at is null
    returning * into v_pin;
    if not found then return false; end if;
    -- Of an attempt that was lost with its worker, only its end is known.
    insert into crossover.attempts (id, due_at, started_at, ended_at, epoch, attempt, rehearsal, permanent, unknown, side, outcome, error)
    values (p_id, coalesce(p_due_at, v_pin.run_at), coalesce(p_started_at, p_due_at, v_pin.run_at), clock_timestamp(), p_epoch,
        p_attempt, false, false, p_cause, 'temporal', 'failed', p_error);
    insert into crossover.parked (id, epoch, attempt, rank, side, cause, grp, error)
    values (p_id, p_epoch, p_attempt, -v_pin.priority, 'temporal', p_cause, v_pin.grp, p_error);
    return true;
end $$;

-- Says what came of a parked attempt: succeeded or failed, which ends the interaction, or retry, which lets it run again with
-- the next number. The answer:
--   done: it has ended, or runs again;   asked: Temporal owns it and is told by the relay, also where that was asked before;
--   otherwise: somebody gave another answer before, which stands;   ended: it has ended;   not_parked;   unpinned.
-- The pin is locked first, as end_pins and cancel do it.
create function crossover.resolve(
    p_id uuid, p_answer text, p_result json, p_reason text, p_who text, out answer text, out parked crossover.parked)
language plpgsql as $$
declare
    v_pin    crossover.pins;
    v_reason text := format('resolved as %s by %s%s', p_answer, p_who, coalesce(': ' || p_reason, ''));
begin
    select * into v_pin from crossover.pins p where p.id = p_id for update;
    if not found then answer := 'unpinned'; return; end if;
    if v_pin.ended_at is not null then answer := 'ended'; return; end if;
    select * into parked from crossover.parked k where k.id = p_id for update;
    if not found then answer := 'not_parked'; return; end if;
    if parked.answer is not null then
        answer := case when parked.answer = p_answer then 'asked' else 'otherwise' end;
        return;
    end if;
    insert into crossover.resolutions (id, parked_at, epoch, attempt, side, cause, answer, reason, who)
    values (p_id, parked.since, parked.epoch, parked.attempt, parked.side, parked.cause, p_answer, p_reason, p_who);
    if p_answer = 'succeeded' then
        update crossover.attempts a set outcome = 'succeeded', permanent = null, result = coalesce(p_result, 'null'::json)
        where a.id = p_id and a.ended_at >= v_pin.created_at and a.side = parked.side and not a.rehearsal
            and a.epoch = parked.epoch and a.attempt = parked.attempt;
    end if;
    if parked.side = 'temporal' then
        update crossover.parked k set answer = p_answer, result = p_result, reason = v_reason, asked_at = clock_timestamp(),
            due_at = clock_timestamp()
        where k.id = p_id;
        answer := 'asked';
    elsif p_answer = 'retry' then
        delete from crossover.parked k where k.id = p_id;
        perform crossover.place(p_id, clock_timestamp(), parked.attempt + 1, v_pin.priority, true, parked.grp);
        answer := 'done';
    else
        perform crossover.end_pins('postgres', array[p_id], array[parked.epoch], array[parked.attempt], array[p_answer], array[v_reason]);
        answer := 'done';
    end if;
end $$;

-- The faults of a policy; the body is that of an earlier migration, with one field more.
create or replace function crossover.policy_faults(p_policy json) returns setof text
language plpgsql immutable as $$
declare
    v_day constant bigint := 86400000;
begin
    if p_policy is null then return; end if;
    if json_typeof(p_policy) <> 'object' then
        return next 'policy: must be an object';
        return;
    end if;
    return query select crossover.field_faults('policy.', p_policy,
        array['max_attempts', 'backoff', 'start_timeout_ms', 'run_timeout_ms', 'heartbeat_timeout_ms', 'give_up_after_ms', 'on_unknown']);
    return next crossover.number_fault('policy.max_attempts', p_policy -> 'max_attempts', 1, 1000);
    return next crossover.number_fault('policy.run_timeout_ms', p_policy -> 'run_timeout_ms', 1, 7 * v_day);
    return next crossover.number_fault('policy.start_timeout_ms', p_policy -> 'start_timeout_ms', 1, 366 * v_day);
    return next crossover.number_fault('policy.heartbeat_timeout_ms', p_policy -> 'heartbeat_timeout_ms', 1, v_day);
    return next crossover.number_fault('policy.give_up_after_ms', p_policy -> 'give_up_after_ms', 1, 366 * v_day);
    if p_policy -> 'on_unknown' is not null and json_typeof(p_policy -> 'on_unknown') <> 'null'
        and p_policy ->> 'on_unknown' not in ('retry', 'park') then
        return next format('policy.on_unknown: must be retry or park, is %s', left((p_policy -> 'on_unknown')::text, 40));
    end if;
    if json_typeof(p_policy -> 'backoff') <> 'null' then
        return query select crossover.backoff_faults(p_policy -> 'backoff');
    end if;
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
    where not exists (select from crossover.pins p where p.id = i.id);
