-- Handing work over from Postgres to Temporal, and cancelling what has begun.
--
-- A handover is one transaction for each batch: the owner changes, the epoch grows, the Postgres copy becomes a rehearsal
-- and the outbox gets the new copy for Temporal. There is no state in between, so a crash leaves nothing to mend, and what
-- was moved is not moved again.

alter table crossover.pins add column moved_at timestamptz, add column cancel_reason text;
comment on column crossover.pins.moved_at is 'When its ownership last moved.';
comment on column crossover.pins.cancel_reason is 'What was said when it was first asked to cancel it.';

-- What operators handed over.
create table crossover.handovers (
    id          bigint generated always as identity primary key,
    at          timestamptz not null default clock_timestamp(),
    ended_at    timestamptz,
    account     text not null,
    kind        text,
    interaction uuid,
    moved       bigint not null default 0,
    refused     bigint not null default 0,
    who         text not null
);
comment on table crossover.handovers is 'Every handover that was begun with --yes, and how much it moved.';
comment on column crossover.handovers.ended_at is 'Absent where the command died: asking again goes on where it ended.';

-- Handover ---------------------------------------------------------------------------------------------------

-- Makes the copy of an execution that was never claimed a rehearsal, where it is. `p_behind`: it is placed nowhere, for
-- earlier members of its series have not ended. Never waits: what another transaction moves just now is `busy`.
--
-- The row is a new one, and not the old one changed: a claim that read its snapshot before this commits would follow a changed
-- row, and would run it by the pin as that was before. A row that is gone it leaves out, and the new one it does not see.
create function crossover.to_rehearsal(p_id uuid, p_behind boolean) returns text
language plpgsql as $$
declare
    v_waits crossover.scheduled;
    v_ready crossover.ready;
begin
    select * into v_waits from crossover.scheduled s where s.id = p_id for update skip locked;
    if found then
        if v_waits.attempt > 1 then return 'claimed'; end if;
        delete from crossover.scheduled s where s.id = p_id;
        insert into crossover.scheduled (id, due_at, attempt, rank, execute, grp)
        values (p_id, v_waits.due_at, 1, v_waits.rank, false, v_waits.grp);
        return 'moved';
    end if;
    select * into v_ready from crossover.ready r where r.id = p_id for update skip locked;
    if found then
        if v_ready.attempt > 1 then return 'claimed'; end if;
        delete from crossover.ready r where r.id = p_id;
        insert into crossover.ready (seq, id, due_at, attempt, rank, execute, grp) overriding system value
        values (v_ready.seq, p_id, v_ready.due_at, 1, v_ready.rank, false, v_ready.grp);
        return 'moved';
    end if;
    if exists (select from crossover.running r where r.id = p_id) then return 'claimed'; end if;
    return case when p_behind then 'moved' else 'busy' end;
end $$;

-- Hands interactions of an account over to Temporal, those that may be: in a series in order. The answers:
--   moved: Temporal owns it from now on;   temporal: it is Temporal's, by an earlier handover or from the start;
--   ended, cancelled (somebody asked to), conflict, claimed: refused for good;   unarmed: the account is not armed;
--   busy: another transaction has it just now, ask again.   What is no interaction of the account is left out.
create function crossover.hand_over(p_handover bigint, p_account text, p_ids uuid[])
returns table (id uuid, answer text) language plpgsql as $$
#variable_conflict use_column
declare
    v_now    timestamptz := clock_timestamp();
    v_pin    crossover.pins;
    v_answer text;
    v_ids    uuid[] := '{}';
    v_said   text[] := '{}';
    v_moved  uuid[] := '{}';
begin
    perform pg_advisory_xact_lock_shared(crossover.account_lock(p_account));
    if not exists (select from crossover.accounts a where a.account = p_account and a.armed_at is not null) then
        return query select u.id, 'unarmed' from unnest(p_ids) as u (id);
        return;
    end if;
    perform from crossover.series s
    where s.series_id in (select p.series_id from crossover.pins p where p.id = any (p_ids) and p.account = p_account)
    order by s.series_id for update;

    -- Pins are never waited for: an end and a cancellation hold theirs while they wait for the series.
    for v_pin in
        select p.* from crossover.pins p where p.id = any (p_ids) and p.account = p_account
        order by p.series_id nulls first, p.series_no, p.id for update skip locked
    loop
        v_answer := case
            when v_pin.ended_at is not null then 'ended'
            when v_pin.owner = 'temporal' then 'temporal'
            when v_pin.owner <> 'postgres' then 'busy'
            when v_pin.conflict is not null then 'conflict'
            when v_pin.cancel_requested_at is not null then 'cancelled'
            when v_pin.attempts > 0 then 'claimed'
            else crossover.to_rehearsal(v_pin.id, exists (select from crossover.series s
                where s.series_id = v_pin.series_id and s.head_no < v_pin.series_no)) end;
        if v_answer = 'moved' then v_moved := v_moved || v_pin.id; end if;
        v_ids := v_ids || v_pin.id;
        v_said := v_said || v_answer;
    end loop;

    if v_moved <> '{}' then
        -- The sweep counts its patience from here: Temporal gets it only now.
        update crossover.pins p set owner = 'temporal', epoch = p.epoch + 1, on_temporal = true, moved_at = v_now, swept_at = v_now
        where p.id = any (v_moved);
        -- An earlier epoch's copy that was not delivered yet gives its row up. One that is under way can't take this row out:
        -- a delivery names its epoch.
        with moved as materialized (
            select p.id, p.series_id, p.series_no, p.epoch from crossover.pins p where p.id = any (v_moved)),
        stretches as materialized (
            select m.series_id, s.head_no, max(m.series_no) as last_no
            from moved m join crossover.series s on s.series_id = m.series_id group by m.series_id, s.head_no),
        -- Once a series, however many of it move.
        owned as materialized (
            select e.series_id, e.series_no, e.id from stretches t
            join crossover.pins e on e.series_id = t.series_id and e.series_no >= t.head_no and e.series_no < t.last_no
            where e.ended_at is null and e.owner <> 'temporal')
        insert into crossover.outbox as o (id, due_at, created_at, series_id, series_no, epoch, behind)
        select m.id, v_now, v_now, m.series_id, m.series_no, m.epoch, array(
            select e.id from owned e where e.series_id = m.series_id and e.series_no < m.series_no
            order by e.series_no desc limit 64)
        from moved m
        on conflict (id) do update set due_at = excluded.due_at, created_at = excluded.created_at, epoch = excluded.epoch,
            behind = excluded.behind, tries = 0, last_error = null;
        update crossover.handovers h set moved = h.moved + cardinality(v_moved) where h.id = p_handover;
    end if;
    return query
        select u.id, u.answer from unnest(v_ids, v_said) as u (id, answer)
        union all
        select p.id, 'busy' from crossover.pins p
        where p.id = any (p_ids) and p.account = p_account and p.id <> all (v_ids);
end $$;

-- Cancel -----------------------------------------------------------------------------------------------------

-- Asks to cancel an interaction, begun or not. The answer is null where there is no pin of it, else
--   cancelled: it has ended so, now or before;   asked: it is with a worker or with Temporal, which are told, and if it ends
--   by itself before that, its own end stands;   ended: it has ended otherwise.
-- The wish is a column of the pin: a claim, a retry, a handover and a delivery look at it.
-- The pin is locked before the series, as end_pins does it, and the series before the places, so that an end that makes
-- this one the head has either placed it before the look or leaves it out afterwards.
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

-- Cancels what somebody asked to cancel while it ran, and what waits for another attempt now. Called in the transaction that
-- ends the attempt: nobody can claim it in between.
create function crossover.cancel_instead_of_retry(p_ids uuid[]) returns setof uuid
language plpgsql as $$
declare
    v_pin record;
begin
    for v_pin in
        select p.id, p.cancel_reason from crossover.pins p
        where p.id = any (p_ids) and p.cancel_requested_at is not null and p.ended_at is null and p.owner = 'postgres'
        order by p.series_id, p.id
    loop
        perform crossover.cancel(v_pin.id, v_pin.cancel_reason);
        return next v_pin.id;
    end loop;
end $$;
