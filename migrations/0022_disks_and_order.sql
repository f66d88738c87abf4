-- Disks of forgotten processes ---------------------------------------------------------------------------------
--
-- A process that starts without Postgres goes by its disk. If it was forgotten meanwhile, nobody hears of what it then starts
-- without a pin. So the copy on disk holds for a time after the last beat, which the process tells with each beat, and a process is
-- forgotten only after that; or the operator says that its disk is gone.

alter table crossover.routers add column disk_valid interval;
comment on column crossover.routers.disk_valid is
    'router.disk_valid of the process: for so long after its last beat it may start again without Postgres. Null: a version that does so for ever.';

-- When the disk of a process is of no use to it any more; null: never. Its age is measured by the clock of its machine, which may
-- have been set a little meanwhile, or run slow.
create function crossover.disk_void_at(p_router crossover.routers) returns timestamptz
language sql stable as $$
    select p_router.beat_at + p_router.disk_valid * 1.1 + interval '5 seconds'
$$;

-- Registers a process or keeps it alive; the body is that of an earlier migration, and the beat says how long its disk is good for.
create function crossover.process_beat(
    p_id uuid, p_name text, p_roles text[], p_fails_open boolean, p_in_doubt integer, p_spooled bigint, p_trouble text,
    p_revision text, p_good_at timestamptz, p_overrides bigint[], p_disk_valid interval)
returns table (fresh boolean, id uuid, account text, kinds text[], to_stage text) language plpgsql as $$
#variable_conflict use_column
declare
    v_fresh boolean;
begin
    update crossover.routers r set
        beat_at = clock_timestamp(), roles = p_roles, fails_open = p_fails_open, in_doubt = p_in_doubt, spooled = p_spooled,
        trouble = p_trouble, revision = p_revision, good_at = p_good_at, overrides = p_overrides, disk_valid = p_disk_valid,
        seen_at = case when r.revision = p_revision then r.seen_at else clock_timestamp() end
    where r.id = p_id and r.ended_at is null and (r.fails_open or not p_fails_open);
    v_fresh := not found;
    if v_fresh then
        -- Accounts that are being armed on the spot now are so when it reads them.
        perform pg_advisory_xact_lock(crossover.registry_lock());
        insert into crossover.routers as r
            (id, name, roles, fails_open, in_doubt, spooled, trouble, revision, good_at, overrides, disk_valid)
        values (p_id, p_name, p_roles, p_fails_open, p_in_doubt, p_spooled, p_trouble, p_revision, p_good_at, p_overrides, p_disk_valid)
        on conflict (id) do update set beat_at = clock_timestamp(), ended_at = null, name = excluded.name, roles = excluded.roles,
            started_at = case when r.ended_at is null then r.started_at else clock_timestamp() end,
            fails_open = excluded.fails_open, in_doubt = excluded.in_doubt, spooled = excluded.spooled, trouble = excluded.trouble,
            revision = excluded.revision, good_at = excluded.good_at, overrides = excluded.overrides, disk_valid = excluded.disk_valid,
            seen_at = case when r.revision = excluded.revision then r.seen_at else clock_timestamp() end;
        -- What it said before it ended is not what it says now.
        delete from crossover.arming_acks k where k.router = p_id;
    end if;
    return query
    select v_fresh, f.id, f.account, f.kinds, f.to_stage
    from (select 1) one left join lateral (
        select f.id, f.account, f.kinds, f.to_stage from crossover.flips f
        where f.until_at > clock_timestamp() and 'router' = any (p_roles)
            and not exists (select from crossover.flip_acks a where a.flip = f.id and a.router = p_id)
        order by f.at limit 1000) f on true;
end $$;

-- For processes of the version before, which go by their disk however old it is.
create or replace function crossover.process_beat(
    p_id uuid, p_name text, p_roles text[], p_fails_open boolean, p_in_doubt integer, p_spooled bigint, p_trouble text,
    p_revision text, p_good_at timestamptz, p_overrides bigint[])
returns table (fresh boolean, id uuid, account text, kinds text[], to_stage text) language sql as $$
    select * from crossover.process_beat(p_id, p_name, p_roles, p_fails_open, p_in_doubt, p_spooled, p_trouble, p_revision,
        p_good_at, p_overrides, null)
$$;

-- Takes a process out of the registry that did not say goodbye. The answer:
--   forgotten;   unknown: there is none, or it has ended;   disk: its disk may still be used, and nobody said that it is gone:
--   nothing was changed.
-- The one of the version before asked nobody, so it goes.
drop function crossover.forget_router(uuid);
create function crossover.forget_router(p_router uuid, p_disk_gone boolean) returns text
language plpgsql as $$
declare
    v_router  crossover.routers;
    v_void_at timestamptz;
begin
    -- Locked against its beat: one that comes before is seen, and one that comes after registers it anew.
    select * into v_router from crossover.routers r where r.id = p_router and r.ended_at is null for update;
    if not found then return 'unknown'; end if;
    v_void_at := crossover.disk_void_at(v_router);
    if not p_disk_gone and (v_void_at is null or v_void_at > clock_timestamp()) then return 'disk'; end if;
    update crossover.routers set ended_at = clock_timestamp() where id = p_router;
    if not (v_router.fails_open or v_router.in_doubt > 0 or v_router.spooled > 0) then return 'forgotten'; end if;
    -- In the transaction in which it is no longer waited for: `advance` looks first who has acknowledged and then for this, so
    -- no barrier falls before it is seen.
    insert into crossover.blind_spots (router) values (p_router) on conflict do nothing;
    return 'forgotten';
end $$;

-- One order of locks -------------------------------------------------------------------------------------------

-- Ends attempts that a worker holds; the body is that of an earlier migration, and it locks what it will need first.
create or replace function crossover.finish(
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
    -- What is to be tried again may be cancelled in this transaction (cancel_instead_of_retry), which moves its series on, as an
    -- end does. Series are locked in one order everywhere, so all of them at once, and pins before them, as ends and
    -- cancellations do it. Once its pin is locked, nobody adds a wish to cancel.
    if exists (select from unnest(p_retries, p_parks) as f (retry_ms, park) where f.retry_ms is not null or f.park) then
        perform from crossover.pins p where p.id = any (p_ids) order by p.id for no key update;
        perform from crossover.series s
        where s.series_id in (
            select p.series_id from unnest(p_ids, p_retries, p_parks) as f (id, retry_ms, park)
            join crossover.pins p on p.id = f.id
            where p.owner = 'postgres' and p.ended_at is null
                and (p.cancel_requested_at is not null or f.retry_ms is null and not coalesce(f.park, false)))
        order by s.series_id for update;
    end if;
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

-- What is held -------------------------------------------------------------------------------------------------

-- Says what came of a parked attempt: succeeded or failed, which ends the interaction, or retry, which lets it run again with
-- the next number; the body is that of an earlier migration, and what is held for a conflict is not run again. The answer:
--   done: it has ended, or runs again;   asked: Temporal owns it and is told by the relay, also where that was asked before;
--   otherwise: somebody gave another answer before, which stands;   held: Temporal has other work under its key, so nothing of
--   it runs, and it can only be ended;   ended: it has ended;   not_parked;   unpinned.
-- The pin is locked first, as end_pins and cancel do it.
create or replace function crossover.resolve(
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
    -- A claim would drop it, and it would be in no place.
    if p_answer = 'retry' and parked.side = 'postgres' and v_pin.conflict is not null then answer := 'held'; return; end if;
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
