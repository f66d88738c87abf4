-- Cancelling work that waits: never begun by the side that owns it.
--
-- What Postgres owns ends in the transaction that asks for it. What Temporal owns only Temporal can end, because a
-- pinned envelope runs there on its own authority: the wish is written down here and travels the way of the copy
-- itself, by the outbox, so that it survives crashes and outages and never overtakes the copy.

alter table crossover.pins add column cancel_requested_at timestamptz;
comment on column crossover.pins.cancel_requested_at is 'When somebody first asked to cancel it. It is cancelled only once outcome says so.';

alter table crossover.outbox add column cancel boolean not null default false;
comment on column crossover.outbox.cancel is 'The copy is to be delivered as cancelled; a delivery of the copy as it was does not take the row out.';

-- Asks to cancel an interaction. The answer is null where there is no pin of it, else
--   cancelled: it has ended so, now or before;   asked: Temporal owns it and is told by the relay;
--   begun: its owner has begun it, or would begin it before it could be told;   ended: it ended otherwise;
--   moving: its owner is changing.
-- The pin is locked before the series, as end_pins does it, and the series before the places, so that an end that makes
-- this one the head has either placed it before the look or leaves it out afterwards.
create function crossover.cancel(p_id uuid, p_reason text, out answer text, out pin crossover.pins)
language plpgsql as $$
declare
    v_head  bigint;
    v_tries integer := 0;
begin
    select * into pin from crossover.pins where id = p_id for update;
    if not found then return; end if;
    answer := case
        when pin.outcome = 'cancelled' then 'cancelled'
        when pin.ended_at is not null then 'ended'
        when pin.owner = 'moving' then 'moving'
        when pin.attempts > 0 then 'begun'
        when pin.owner = 'temporal' and pin.conflict is null and exists (
            select from crossover.sightings s
            where s.id = p_id and s.side = 'temporal' and s.what = 'dequeued' and not s.rehearsal) then 'begun' end;
    if answer is not null then return; end if;

    if pin.owner = 'temporal' and pin.conflict is null then
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
                answer := 'begun';
                return;
            end if;
            exit when pin.conflict is not null or pin.series_no > v_head;
            v_tries := v_tries + 1;
            if v_tries > 20 then
                raise exception 'the copy of % is in no place', p_id using errcode = 'lock_not_available';
            end if;
        end loop;
        answer := 'cancelled';
        perform crossover.end_pins(pin.owner, array[p_id], array[pin.epoch], array[0], array['cancelled'], array[p_reason]);
    end if;

    update crossover.pins set cancel_requested_at = coalesce(cancel_requested_at, clock_timestamp())
    where id = p_id returning * into pin;
    -- An execution is called off, and a rehearsal needs no longer occupy its place.
    if pin.on_temporal and pin.conflict is null then
        insert into crossover.outbox as o (id, due_at, series_id, series_no, epoch, behind, cancel)
        values (p_id, clock_timestamp(), pin.series_id, pin.series_no, pin.epoch, '{}', true)
        on conflict (id) do update set due_at = excluded.due_at, cancel = true;
    end if;
end $$;

-- Takes away Postgres' rehearsals, not begun, of what was cancelled on Temporal. One that is held mirrors the end.
create function crossover.forget_rehearsals(p_ids uuid[]) returns void
language plpgsql as $$
begin
    delete from crossover.scheduled where id = any (p_ids) and not execute;
    delete from crossover.ready where id = any (p_ids) and not execute;
end $$;
