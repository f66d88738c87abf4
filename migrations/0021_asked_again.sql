-- What a copy is told that asks its pin again, or beside another; and what a workflow is told that waits for a person.

-- Holds a pin, for a person to look: its copies on Postgres are taken away, and what was to be delivered is not. The first
-- reason stays.
create function crossover.hold(p_id uuid, p_epoch integer, p_conflict text) returns void
language plpgsql as $$
begin
    update crossover.pins set conflict = coalesce(conflict, p_conflict) where id = p_id and epoch = p_epoch;
    if not found then return; end if;
    delete from crossover.ready where id = p_id;
    delete from crossover.scheduled where id = p_id;
    delete from crossover.outbox where id = p_id;
end $$;

-- The body is that of the reconciliation's migration, and there is one verdict more:
--   another: the pin is Temporal's and holds other work, and the copy that asks came without a pin. Both are the same workflow
-- (or member of one), so Temporal can't have the pin's copy while this one is there. Its caller was told yes first: it runs,
-- beside the pin, which is held. A pin whose work has run is none of these, nor is one whose copy has another place.
create or replace function crossover.reconcile_pin(
    p_account text, p_key text, p_kind text, p_series text, p_series_id uuid, p_grp text, p_run_at timestamptz, p_epoch integer,
    p_payload_hash bytea, p_payload json, p_policy json, p_weight integer, p_revision text, p_insert boolean, p_deliver boolean,
    out verdict text, out created boolean, out attempts integer, out reason text, out behind uuid[])
language plpgsql as $$
declare
    v_id   uuid        := crossover.interaction_id(p_account, p_key);
    v_now  timestamptz := clock_timestamp();
    v_pin  crossover.pins;
    v_no   bigint;
    v_head bigint;
    v_differs boolean; -- It came with other work.
begin
    created := false; behind := '{}';
    select * into v_pin from crossover.pins where id = v_id;
    if not found and p_insert then
        perform pg_advisory_xact_lock_shared(crossover.account_lock(p_account));
        if p_series_id is not null then
            insert into crossover.series (series_id, account, kind, series)
            values (p_series_id, p_account, p_kind, p_series) on conflict do nothing;
            select last_no + 1 into v_no from crossover.series where series_id = p_series_id for update;
        end if;
        insert into crossover.pins (id, created_at, run_at, series_id, series_no, epoch, weight, on_temporal, on_postgres, stage,
            owner, account, kind, key, series, grp, flag_revision, payload_hash)
        values (v_id, v_now, coalesce(p_run_at, v_now), p_series_id, v_no, p_epoch, p_weight, true, false, 'off',
            'temporal', p_account, p_kind, p_key, p_series, p_grp, p_revision, p_payload_hash)
        on conflict (id) do nothing returning * into v_pin;
        created := found;
        if not created then
            select * into v_pin from crossover.pins where id = v_id;
        else
            insert into crossover.payloads (id, created_at, payload, policy) values (v_id, v_now, p_payload, p_policy);
            if v_no is not null then
                update crossover.series set last_no = v_no where series_id = p_series_id;
            end if;
            if p_deliver then
                insert into crossover.outbox (id, due_at, series_id, series_no, epoch, behind)
                -- A member of a series is told by an update as well, which takes this row out.
                values (v_id, case when v_no is null then v_now else v_now + interval '2 seconds' end, p_series_id, v_no, p_epoch, '{}');
            end if;
        end if;
    end if;

    attempts := coalesce(v_pin.attempts, 0);
    v_differs := v_pin.payload_hash <> p_payload_hash or v_pin.kind <> p_kind;
    verdict := case
        when v_pin.id is null then 'gone'
        when v_pin.owner <> 'temporal' or v_pin.epoch <> p_epoch then 'moved'
        -- Its copy is, or was, in another place of Temporal.
        when v_pin.series_id is distinct from p_series_id then 'other'
        when v_differs and p_insert and (v_pin.ended_at is null or v_pin.attempts = 0) then 'another'
        when v_differs then 'other'
        when v_pin.ended_at is not null then 'ended'
        when v_pin.conflict is not null then 'held'
        else 'own' end;
    reason := case verdict
        when 'gone' then 'there is no pin of it any more'
        when 'moved' then format('its pin says owner %s, epoch %s', v_pin.owner, v_pin.epoch)
        when 'other' then 'its key is pinned with other work'
        when 'another' then 'its key is pinned with other work, which Temporal can''t have beside it'
        when 'ended' then format('its pin has ended: %s', v_pin.outcome)
        when 'held' then format('it is held: %s', v_pin.conflict) end;
    if verdict = 'another' and v_pin.ended_at is null then
        perform crossover.hold(v_pin.id, p_epoch, 'Temporal has a copy that came without a pin, with other work; that one runs');
    end if;
    if verdict in ('own', 'another') and v_pin.series_id is not null then
        select head_no into v_head from crossover.series where series_id = v_pin.series_id;
        behind := array(
            select p.id from crossover.pins p
            where p.series_id = v_pin.series_id and p.series_no >= v_head and p.series_no < v_pin.series_no
                and p.ended_at is null and p.owner <> 'temporal'
                and not exists (
                    select from crossover.pins t
                    where t.series_id = p.series_id and t.series_no >= v_head and t.series_no < p.series_no
                        and t.ended_at is null and t.owner = 'temporal')
            order by p.series_no desc limit 64);
    end if;
end $$;

-- Counts an attempt that a run before a reset may still be making: whether it has ended is not known, so the new run goes on
-- after it, and no two runs call with one fence. What the earlier run was waiting for is nobody's to answer any more.
-- Null: the pin is not Temporal's any more, or has ended.
create function crossover.count_anew(p_id uuid, p_epoch integer, p_before integer) returns integer
language plpgsql as $$
declare
    v_attempts integer;
begin
    update crossover.pins p set attempts = greatest(p.attempts + 1, p_before + 1, (
        -- Of a run that its runner took away the number is known, whatever was lost before it.
        select max(d.attempt) from crossover.detached d where d.id = p_id and d.epoch = p_epoch and d.side = 'temporal'))
    where p.id = p_id and p.epoch = p_epoch and p.owner = 'temporal' and p.ended_at is null
    returning p.attempts into v_attempts;
    if found then
        delete from crossover.parked k where k.id = p_id and k.side = 'temporal';
    end if;
    return v_attempts;
end $$;

-- Parks what Temporal owns, with the attempt after which that is. `park` is for processes of an older version: it took an
-- attempt whose failure was recorded, and whose report was lost on its way to Temporal, for one that nobody waits for.
--   parked;   known: it was before, or somebody has said what came of it, and the relay tells;
--   over: the pin has ended, or is not Temporal's under this epoch, so nobody will ever answer.
create function crossover.park_attempt(
    p_id uuid, p_epoch integer, p_attempt integer, p_cause text, p_error text, p_due_at timestamptz, p_started_at timestamptz)
returns text language plpgsql as $$
declare
    v_pin crossover.pins;
begin
    select * into v_pin from crossover.pins p where p.id = p_id for update;
    if not found or v_pin.ended_at is not null or v_pin.owner <> 'temporal' or v_pin.epoch <> p_epoch then
        return 'over';
    end if;
    -- A reset took the workflow back to before it was told what a person had said: it is told again.
    insert into crossover.parked (id, epoch, attempt, rank, side, cause, grp, error, asked_at, answer, reason)
    select p_id, p_epoch, p_attempt, -v_pin.priority, 'temporal', r.cause, v_pin.grp, p_error, r.at, r.answer, r.reason
    from crossover.resolutions r
    where r.id = p_id and r.epoch = p_epoch and r.attempt = p_attempt and r.answer = 'retry'
        and not exists (select from crossover.parked k where k.id = p_id);
    if exists (select from crossover.parked k where k.id = p_id and k.epoch = p_epoch and k.attempt >= p_attempt)
        or exists (select from crossover.resolutions r where r.id = p_id and r.epoch = p_epoch and r.attempt >= p_attempt) then
        return 'known';
    end if;
    -- Of an attempt that was lost with its worker, only its end is known; one that was recorded keeps its record.
    insert into crossover.attempts (id, due_at, started_at, ended_at, epoch, attempt, rehearsal, permanent, unknown, side, outcome, error)
    select p_id, coalesce(p_due_at, v_pin.run_at), coalesce(p_started_at, p_due_at, v_pin.run_at), clock_timestamp(), p_epoch,
        p_attempt, false, false, p_cause, 'temporal', 'failed', p_error
    where not exists (
        select from crossover.attempts a
        where a.id = p_id and a.ended_at >= v_pin.created_at and a.side = 'temporal' and not a.rehearsal
            and a.epoch = p_epoch and a.attempt = p_attempt);
    update crossover.pins p set attempts = greatest(p.attempts, p_attempt) where p.id = p_id;
    -- An answer to an earlier attempt may still be there, taken by its workflow and not yet recorded as told.
    delete from crossover.parked k where k.id = p_id;
    insert into crossover.parked (id, epoch, attempt, rank, side, cause, grp, error)
    values (p_id, p_epoch, p_attempt, -v_pin.priority, 'temporal', p_cause, v_pin.grp, p_error);
    return 'parked';
end $$;

comment on column crossover.reconciliations.refused is 'Copies whose key is pinned for somebody else, as the last pass found them: they never run, or beside a pin that is held.';
