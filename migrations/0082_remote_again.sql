-- Remote workers: what a review found. What is not here is as 0050 has it; docs/remote-workers.md says what holds.

alter table crossover.detached add column claim uuid;
comment on column crossover.detached.claim is 'The claim by which a remote worker had it.';

-- Gives what p_claimer has just claimed to a remote worker, which may be silent for so long, and may take so long.
create or replace function crossover.give_to_remote(
    p_claimer uuid, p_grp text, p_remote text, p_ids uuid[], p_attempts integer[], p_silences bigint[], p_lefts bigint[])
returns table (id uuid, run_until timestamptz) language plpgsql
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
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
        run_until, pinned, side, policy, remote, grp, claim)
    select g.id, g.epoch, g.attempt, g.silence_ms, p.run_at, g.due_at, g.started_at, v_now, v_now,
        g.run_until, true, 'postgres', y.policy, p_remote, p_grp, p_claimer
    from given g join crossover.pins p on p.id = g.id join crossover.payloads y on y.id = p.id and y.created_at = p.created_at
    returning d.id, d.run_until;
end $$;

-- Puts back, as if it had not been claimed, what was given to a remote worker that can't have seen any of it. What somebody has asked to
-- cancel meanwhile ends: nobody may ever ask for it again.
create or replace function crossover.take_from_remote(p_ids uuid[], p_epochs integer[], p_attempts integer[]) returns bigint
language plpgsql set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
#variable_conflict use_column
declare
    v_back uuid[];
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
    select array_agg(b.id) into v_back from back b;
    perform crossover.cancel_instead_of_retry(v_back);
    return coalesce(cardinality(v_back), 0);
end $$;

-- The same of a whole claim whose answer was lost, so that it was given to nobody. Reads all that is out.
create function crossover.take_claim_from_remote(p_claim uuid) returns bigint
language plpgsql set enable_seqscan = off as $$
declare
    v_ids      uuid[];
    v_epochs   integer[];
    v_attempts integer[];
begin
    select array_agg(d.id), array_agg(d.epoch), array_agg(d.attempt) into v_ids, v_epochs, v_attempts
    from crossover.detached d where d.side = 'postgres' and d.closed_at is null and d.claim = p_claim;
    return case when v_ids is null then 0 else crossover.take_from_remote(v_ids, v_epochs, v_attempts) end;
end $$;

-- A remote worker ends attempts. Answers those that were still its own; nothing is written of the others.
create or replace function crossover.end_remote(
    p_grp text, p_ids uuid[], p_epochs integer[], p_attempts integer[], p_outcomes text[], p_permanents boolean[],
    p_retry_afters bigint[], p_retries bigint[], p_results text[], p_errors text[])
returns setof uuid language plpgsql set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
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
        -- Who changes the group just now must not keep an end from being taken.
        begin
            perform crossover.heed_retry_after(crossover.detached_worker(), array_agg(f.id), array_agg(f.attempt),
                array_agg(null::smallint), array_agg(null::bigint), array_agg(f.ms))
            from unnest(v_ids, v_attempts, v_retry_afters) as f (id, attempt, ms) where f.ms is not null;
        exception when deadlock_detected or lock_not_available then
            raise warning 'what was said of coming back later can''t be kept; more of these accounts may start before: %', sqlerrm;
        end;
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

-- Forgets at most p_limit attempts that were closed p_keep ago; how many. Also what a process of an older version took over from a silent
-- runner, which knows nothing of this table.
create function crossover.forget_detached(p_keep interval, p_limit integer) returns bigint
language plpgsql set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_now    timestamptz := clock_timestamp();
    v_closed bigint;
    v_open   bigint := 0;
begin
    delete from crossover.detached d where d.ctid = any (array(
        select o.ctid from crossover.detached o where o.closed_at < v_now - p_keep order by o.closed_at limit p_limit));
    get diagnostics v_closed = row_count;
    if v_closed < p_limit then
        delete from crossover.detached d where d.ctid = any (array(
            select o.ctid from crossover.detached o
            where o.side = 'postgres' and o.closed_at is null and o.vt is null and o.beat_at < v_now - p_keep
                and not exists (select from crossover.running r
                    where r.id = o.id and r.epoch = o.epoch and r.attempt = o.attempt and r.worker = crossover.detached_worker())
            limit p_limit));
        get diagnostics v_open = row_count;
    end if;
    return v_closed + v_open;
end $$;
