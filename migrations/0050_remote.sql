-- Remote workers: programs that take work of a group over HTTP. docs/remote-workers.md has how they are written.
--
-- A group is remote by its name, which begins with `remote.`: so every process, every function and every index agrees on it at every
-- moment, and there is no declaration that somebody has read and somebody else has not. Executions of such a group stand in `ready`
-- a thousand ranks further down. A claim of a worker of ours ends before them and reads none of them, however many wait; a remote
-- worker's has an index of its own. Rehearsals stay where they are: workers of ours hold them.
--
-- What a remote worker holds is away with its runner: the row in `running` is nobody's, and one in `detached` has the lease.

create function crossover.is_remote(p_grp text) returns boolean
language sql immutable strict parallel safe as $$ select starts_with(p_grp, 'remote.') $$;
comment on function crossover.is_remote(text) is 'Whether work of this group is run by remote workers alone.';

create function crossover.set_apart() returns trigger
language plpgsql as $$
begin
    -- Quoted, for it is a word of plpgsql.
    new.rank := new.rank + case when new."execute" then 1000 else -1000 end;
    return new;
end $$;
create trigger set_apart before insert on crossover.ready for each row
    when (starts_with(new.grp, 'remote.') and new.execute is distinct from (new.rank > 500)) execute function crossover.set_apart();
comment on column crossover.ready.rank is
    'Minus the priority, so that the index ascends; and 1000 more for an execution that waits for a remote worker.';

-- At the gate of a group with limits nothing stands apart.
create function crossover.set_together() returns trigger
language plpgsql as $$
begin
    new.rank := new.rank - 1000;
    return new;
end $$;
create trigger set_together before insert on crossover.gate for each row when (new.rank > 500)
    execute function crossover.set_together();

alter table crossover.detached add column remote text, add column grp text;
comment on column crossover.detached.remote is 'The remote worker that took it from its group. Null: a runner that was called took it away.';
comment on column crossover.detached.grp is 'The group from which a remote worker took it.';

-- Gives what p_claimer has just claimed to a remote worker, which may be silent for so long, and may take so long.
create function crossover.give_to_remote(
    p_claimer uuid, p_grp text, p_remote text, p_ids uuid[], p_attempts integer[], p_silences bigint[], p_lefts bigint[])
returns table (id uuid, run_until timestamptz) language plpgsql as $$
#variable_conflict use_column
declare
    v_now timestamptz := clock_timestamp();
begin
    -- Where a key is used again before its last end was forgotten here, its fences come again.
    delete from crossover.detached d using unnest(p_ids, p_attempts) as g (id, attempt)
    where d.id = g.id and d.attempt = g.attempt and d.closed_at is not null;
    return query with given as (
        update crossover.running r set worker = crossover.detached_worker(),
            lease_until = v_now + least(g.silence_ms, g.left_ms) * interval '1 millisecond'
        from unnest(p_ids, p_attempts, p_silences, p_lefts) as g (id, attempt, silence_ms, left_ms)
        where r.id = g.id and r.attempt = g.attempt and r.worker = p_claimer and r.execute
        returning r.id, r.epoch, r.attempt, r.due_at, r.started_at, g.silence_ms, v_now + g.left_ms * interval '1 millisecond' as run_until)
    insert into crossover.detached as d (id, epoch, attempt, silence_ms, first_due_at, due_at, started_at, detached_at, beat_at,
        run_until, pinned, side, policy, remote, grp)
    select g.id, g.epoch, g.attempt, g.silence_ms, p.run_at, g.due_at, g.started_at, v_now, v_now,
        g.run_until, true, 'postgres', y.policy, p_remote, p_grp
    from given g join crossover.pins p on p.id = g.id join crossover.payloads y on y.id = p.id and y.created_at = p.created_at
    returning d.id, d.run_until;
end $$;

-- Puts back, as if it had not been claimed, what was given to a remote worker that can't have seen any of it.
create function crossover.take_from_remote(p_ids uuid[], p_epochs integer[], p_attempts integer[]) returns bigint
language plpgsql as $$
#variable_conflict use_column
declare
    v_rows bigint;
begin
    -- In the order in which ends and heartbeats lock.
    perform from crossover.running r where r.id = any (p_ids) order by r.id for update;
    with back as (
        delete from crossover.running r using unnest(p_ids, p_epochs, p_attempts) as g (id, epoch, attempt)
        where r.id = g.id and r.epoch = g.epoch and r.attempt = g.attempt and r.worker = crossover.detached_worker()
        returning r.id, r.due_at, r.epoch, r.attempt, r.rank, r.execute, r.grp, r.gated_for),
    gone as (
        delete from crossover.detached d using back b where d.id = b.id and d.epoch = b.epoch and d.attempt = b.attempt),
    -- What has a place of its group gives it back.
    stopped as (
        insert into crossover.gate (grp, task, rank, ord, id, due_at, attempt, execute, account)
        select grp, false, rank, nextval('crossover.ready_seq_seq'), id, due_at, attempt, execute, gated_for
        from back where gated_for is not null),
    placed as (
        insert into crossover.ready (id, due_at, attempt, rank, execute, grp)
        select id, due_at, attempt, rank, execute, grp from back where gated_for is null order by due_at)
    select count(*) into v_rows from back;
    return v_rows;
end $$;

-- Heartbeats of a remote worker, by id. Where the answer is `kept`, its lease is as long again.
create function crossover.beat_remote(p_grp text, p_ids uuid[], p_epochs integer[], p_attempts integer[])
returns table (id uuid, epoch integer, attempt integer, answer text, silence_ms bigint, run_until timestamptz, cancel_requested boolean)
language plpgsql as $$
#variable_conflict use_column
declare
    v_one record;
begin
    for v_one in
        select f.id, f.epoch, f.attempt, exists (
            select from crossover.detached d
            where d.id = f.id and d.epoch = f.epoch and d.attempt = f.attempt and d.remote is not null and d.grp = p_grp) as known
        from unnest(p_ids, p_epochs, p_attempts) as f (id, epoch, attempt) order by f.id
    loop
        id := v_one.id; epoch := v_one.epoch; attempt := v_one.attempt;
        answer := 'unknown'; silence_ms := null; run_until := null; cancel_requested := null;
        if v_one.known then
            select b.answer, b.silence_ms, b.run_until, b.cancel_requested into answer, silence_ms, run_until, cancel_requested
            from crossover.beat_detached(v_one.id, v_one.epoch, v_one.attempt) b;
        end if;
        return next;
    end loop;
end $$;

-- A remote worker ends attempts. Answers those that were still its own; nothing is written of the others.
create function crossover.end_remote(
    p_grp text, p_ids uuid[], p_epochs integer[], p_attempts integer[], p_outcomes text[], p_permanents boolean[],
    p_retry_afters bigint[], p_retries bigint[], p_results text[], p_errors text[])
returns setof uuid language plpgsql as $$
declare
    v_ids          uuid[];
    v_attempts     integer[];
    v_outcomes     text[];
    v_permanents   boolean[];
    v_retry_afters bigint[];
    v_retries      bigint[];
    v_results      text[];
    v_errors       text[];
begin
    -- In the order in which ends of workers lock.
    perform from crossover.running r where r.id = any (p_ids) order by r.id for update;
    select array_agg(f.id), array_agg(f.attempt), array_agg(f.outcome), array_agg(f.permanent), array_agg(f.retry_after_ms),
        array_agg(f.retry_ms), array_agg(f.result), array_agg(f.error)
    into v_ids, v_attempts, v_outcomes, v_permanents, v_retry_afters, v_retries, v_results, v_errors
    from unnest(p_ids, p_epochs, p_attempts, p_outcomes, p_permanents, p_retry_afters, p_retries, p_results, p_errors)
        as f (id, epoch, attempt, outcome, permanent, retry_after_ms, retry_ms, result, error)
    join crossover.running r on r.id = f.id and r.epoch = f.epoch and r.attempt = f.attempt
        and r.worker = crossover.detached_worker()
    join crossover.detached d on d.id = f.id and d.epoch = f.epoch and d.attempt = f.attempt and d.ended_at is null
        and d.remote is not null and d.grp = p_grp;
    if v_ids is null then return; end if;
    -- Before their places are free.
    if exists (select from unnest(v_retry_afters) as f (ms) where f.ms is not null) then
        perform crossover.heed_retry_after(crossover.detached_worker(), array_agg(f.id), array_agg(f.attempt),
            array_agg(null::smallint), array_agg(null::bigint), array_agg(f.ms))
        from unnest(v_ids, v_attempts, v_retry_afters) as f (id, attempt, ms) where f.ms is not null;
    end if;
    perform crossover.finish(crossover.detached_worker(), v_ids, v_attempts, v_outcomes, v_permanents, v_retry_afters, v_retries,
        v_results, v_errors, array_fill(null::text, array[cardinality(v_ids)]), array_fill(false, array[cardinality(v_ids)]));
    update crossover.detached d set ended_at = clock_timestamp(), closed_at = clock_timestamp(), outcome = f.outcome,
        permanent = f.permanent, retry_after_ms = f.retry_after_ms, error = f.error
    from unnest(p_ids, p_epochs, p_attempts, p_outcomes, p_permanents, p_retry_afters, p_errors)
        as f (id, epoch, attempt, outcome, permanent, retry_after_ms, error)
    where d.id = f.id and d.epoch = f.epoch and d.attempt = f.attempt and d.id = any (v_ids);
    perform crossover.cancel_instead_of_retry(array(
        select f.id from unnest(v_ids, v_retries) as f (id, retry_ms) where f.retry_ms is not null));
    return query select unnest(v_ids);
end $$;

-- Those of p_grps for which something is ready.
create function crossover.remote_groups_with_work(p_grps text[]) returns setof text
language plpgsql stable set enable_seqscan = off as $$
begin
    -- As a claim reads it: one row of each group, whatever statistics say of a table that was empty a moment ago.
    return query select g.grp from unnest(p_grps) as g (grp)
    cross join lateral (
        select from crossover.ready r where r.grp = g.grp and r.rank > 500 and r.execute
        order by r.rank - 1000, r.seq limit 1) one;
end $$;
