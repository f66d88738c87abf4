-- Takes tasks that a worker has chosen among those that are next in line, because their kinds have room in it. What another has taken
-- meanwhile is left out, and what has no place in its group. The body is that of claim_tasks, which takes the head as it is.
create function crossover.claim_named_tasks(p_worker uuid, p_ranks smallint[], p_vts bigint[], p_ids uuid[])
returns table (rank smallint, vt bigint, id uuid, attempt integer, due_at timestamptz, started_at timestamptz, run_at timestamptz,
    account text, kind text, grp text, policy text, payload text, wish text)
language plpgsql
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
#variable_conflict use_column
begin
    perform from crossover.workers w where w.worker = p_worker for key share;
    if not found then return; end if;
    perform pg_advisory_xact_lock_shared(crossover.claims_lock());
    return query with chosen as materialized (
        select r.rank, r.vt, r.id from unnest(p_ranks, p_vts, p_ids) as n (rank, vt, id)
        join crossover.tasks_ready r on r.rank = n.rank and r.vt = n.vt and r.id = n.id
        where r.worker is null
            -- A stray is left to the next pass at the gate.
            and (r.gated or r.wish is not null or not exists (select from crossover.groups g where g.grp = r.grp and g.gated))
        for no key update of r skip locked),
    taken as (
        update crossover.tasks_ready r set worker = p_worker, started_at = clock_timestamp() from chosen c
        where r.rank = c.rank and r.vt = c.vt and r.id = c.id
        returning r.rank, r.vt, r.id, r.created_at, r.attempt, r.due_at, r.started_at, r.account, r.kind, r.grp, r.wish)
    select t.rank, t.vt, t.id, t.attempt, t.due_at, t.started_at, k.run_at, t.account, t.kind, t.grp, k.policy::text, k.payload::text, t.wish
    from taken t left join crossover.tasks k on k.id = t.id and k.created_at = t.created_at;
end $$;
