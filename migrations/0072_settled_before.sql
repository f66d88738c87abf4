-- Settles as before. Between the look for notes and the lock another process may have settled them all: that was a division by zero.
create or replace function crossover.settle_dependents(p_limit integer, out released integer, out skipped integer, out waiting boolean, out more boolean)
language plpgsql set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_notes     uuid[];
    v_upstreams uuid[];
    v_outcomes  text[];
    v_ids       uuid[];
    v_pins      uuid[];
    v_series    uuid[];
    v_left      uuid[];
    v_run       uuid[];
    v_skip      uuid[];
    v_reasons   text[];
    v_each      integer;
begin
    released := 0; skipped := 0; more := false;
    waiting := exists (select from crossover.dependents);
    if not exists (select from crossover.ended_upstreams)
        or not pg_try_advisory_xact_lock(hashtextextended('crossover.dependents', 0)) then return; end if;

    v_notes := array(select u.upstream from crossover.ended_upstreams u order by u.look_at limit p_limit);
    -- Who was here before may have settled them all.
    if v_notes = '{}' then return; end if;
    v_each := greatest(1, p_limit / least(10, cardinality(v_notes)));
    select array_agg(e.upstream), array_agg(e.outcome), array_agg(e.id) into v_upstreams, v_outcomes, v_ids from (
        select u.upstream, u.outcome, d.id
        from unnest(v_notes) with ordinality n (upstream, n)
        join crossover.ended_upstreams u on u.upstream = n.upstream
        cross join lateral (
            select d.id from crossover.dependencies d
            where d.upstream = u.upstream and d.id > coalesce(u.settled_to, '00000000-0000-0000-0000-000000000000')
            order by d.id limit v_each) d
        order by n.n limit p_limit) e;

    if v_ids is not null then
        -- What does not wait any longer (it was cancelled or released) needs no lock: its edges just go.
        v_pins := array(
            select p.id from crossover.pins p
            where p.id = any (v_ids) and exists (select from crossover.dependents d where d.id = p.id)
            order by p.id for no key update skip locked);
        v_series := array(
            select s.series_id from crossover.series s
            where s.series_id in (select p.series_id from crossover.pins p where p.id = any (v_pins))
            order by s.series_id for update skip locked);
        v_left := array(
            select d.id from crossover.dependents d join crossover.pins p on p.id = d.id
            where d.id = any (v_ids) and (p.id <> all (v_pins) or p.series_id is not null and p.series_id <> all (v_series)));
        with gone as (
            delete from crossover.dependencies d using unnest(v_upstreams, v_ids) as e (upstream, id)
            where d.upstream = e.upstream and d.id = e.id and e.id <> all (v_left) returning 1)
        select exists (select from gone) into more;
        with settled as (
            update crossover.dependents d set unended = d.unended - e.ended, succeeded = d.succeeded + e.succeeded,
                lost = d.lost + e.ended - e.succeeded, first_lost = coalesce(d.first_lost, e.first_lost)
            from (
                select e.id, count(*)::integer as ended, (count(*) filter (where e.outcome = 'succeeded'))::integer as succeeded,
                    (min(e.upstream::text) filter (where e.outcome <> 'succeeded'))::uuid as first_lost
                from unnest(v_upstreams, v_outcomes, v_ids) as e (upstream, outcome, id) where e.id <> all (v_left) group by e.id) e
            where d.id = e.id
            returning d.id, crossover.after_verdict(d.any_of, d.run_on_failure, d.unended, d.succeeded, d.lost) as verdict,
                crossover.skip_reason(d.any_of, d.named, d.first_lost) as reason)
        select array_agg(s.id) filter (where s.verdict = 'run'), array_agg(s.id) filter (where s.verdict = 'skip'),
            array_agg(s.reason) filter (where s.verdict = 'skip')
        into v_run, v_skip, v_reasons from settled s;
        -- Edges to what has not ended stay until it has, or until the key is used again.
        delete from crossover.dependents d where d.id = any (v_run || v_skip);
        perform crossover.place_released(v_run);
        if v_skip is not null then
            perform crossover.end_pins('postgres', v_skip,
                array(select p.epoch from unnest(v_skip) with ordinality s (id, n) join crossover.pins p on p.id = s.id order by s.n),
                array_fill(0, array[cardinality(v_skip)]), array_fill('cancelled'::text, array[cardinality(v_skip)]), v_reasons);
        end if;
        released := coalesce(cardinality(v_run), 0);
        skipped := coalesce(cardinality(v_skip), 0);
    end if;

    -- A note goes when nobody waits for it any longer. Others take their turn behind those that wait for theirs; one that came to its
    -- end with something left over begins anew.
    delete from crossover.ended_upstreams u
    where u.upstream = any (v_notes) and not exists (select from crossover.dependencies d where d.upstream = u.upstream);
    update crossover.ended_upstreams u set look_at = clock_timestamp(), settled_to = (
            -- Null where that was the last of them.
            select case when count(*) = v_each then max(e.id::text)::uuid end
            from unnest(v_upstreams, v_ids) as e (upstream, id) where e.upstream = u.upstream)
    where u.upstream = any (v_notes) and (u.settled_to is not null or u.upstream = any (v_upstreams));
    more := more and exists (select from crossover.ended_upstreams);
end $$;
