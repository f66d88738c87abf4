-- Groups: what a second review found. What is not here is as 0041 has it; docs/groups.md says what holds.

alter table crossover.groups add column giving text not null default '', add column vt bigint not null default 0;
comment on column crossover.groups.giving is 'As turn, for rehearsals that give way.';
comment on column crossover.groups.vt is 'How far its tasks have come in a virtual time of its own.';
update crossover.groups set vt = (select v.vt from crossover.virtual_time v);

alter table crossover.group_holds add column fresh boolean not null default true;
comment on column crossover.group_holds.fresh is 'No pass has looked yet whether the one before it let in more of the account meanwhile.';
create index group_holds_fresh on crossover.group_holds (grp) where fresh;

-- When some process last looked for strays, and forgot what rates no longer need: with many processes, not each of them.
create table crossover.gate_upkeep (
    one       boolean primary key default true check (one),
    looked_at timestamptz,
    tidied_at timestamptz
) with (fillfactor = 10);
insert into crossover.gate_upkeep default values;

-- How far the count of what ran at a group's first limit has come among the tasks.
create table crossover.gate_counts (
    grp  text primary key,
    rank smallint not null default -32768,
    vt   bigint not null default -9223372036854775808,
    id   uuid not null default '00000000-0000-0000-0000-000000000000'
);

-- What is taken back ---------------------------------------------------------------------------------------------

-- Takes executions of an account that were admitted and have not begun back to the gate. Places only become free by it, so it needs no
-- gate_lock; and it waits for nobody.
create function crossover.hold_back(p_grp text, p_account text) returns void
language plpgsql set enable_seqscan = off as $$
begin
    with mine as materialized (
        select r.rank, r.seq from crossover.ready r
        where r.grp = p_grp and r.gated_for = p_account and r.execute for update skip locked),
    back as (delete from crossover.ready r using mine m where r.rank = m.rank and r.seq = m.seq returning r.*)
    insert into crossover.gate (grp, task, rank, ord, id, due_at, attempt, execute, account)
    select b.grp, false, b.rank, b.seq, b.id, b.due_at, b.attempt, b.execute, b.gated_for from back b;
    with mine as materialized (
        select r.rank, r.vt, r.id from crossover.tasks_ready r
        where r.grp = p_grp and r.account = p_account and r.gated and r.worker is null and r.wish is null for update skip locked),
    back as (
        delete from crossover.tasks_ready r using mine m where r.rank = m.rank and r.vt = m.vt and r.id = m.id returning r.*)
    insert into crossover.gate (grp, task, rank, ord, id, due_at, created_at, attempt, execute, account, kind)
    select b.grp, true, b.rank, b.vt, b.id, b.due_at, b.created_at, b.attempt, true, b.account, b.kind from back b;
end $$;

-- Before p_worker reports the ends of attempts that were told to come back later: where their group heeds it, the rest of their
-- account is held back, also what was let in and has not begun. What it does not hold any more says nothing. p_ranks and p_vts: of
-- tasks. How many accounts that are.
create or replace function crossover.heed_retry_after(
    p_worker uuid, p_ids uuid[], p_attempts integer[], p_ranks smallint[], p_vts bigint[], p_ms bigint[]) returns bigint
language plpgsql as $$
declare
    v_grps     text[];
    v_accounts text[];
begin
    with held as (
        insert into crossover.group_holds as o (grp, account, until)
        select w.grp, w.account, clock_timestamp() + max(least(w.ms, 86400000)) * interval '1 millisecond' from (
            select p.grp, p.account, f.ms from unnest(p_ids, p_attempts, p_ms) as f (id, attempt, ms)
            join crossover.running r on r.id = f.id and r.attempt = f.attempt and r.worker = p_worker and r.execute
            join crossover.pins p on p.id = f.id
            union all
            select r.grp, r.account, f.ms
            from unnest(p_ids, p_attempts, p_ranks, p_vts, p_ms) as f (id, attempt, rank, vt, ms)
            join crossover.tasks_ready r on r.rank = f.rank and r.vt = f.vt and r.id = f.id and r.attempt = f.attempt
                and r.worker = p_worker) w
        join crossover.groups g on g.grp = w.grp and g.heed_retry_after
        group by w.grp, w.account order by w.grp, w.account
        on conflict (grp, account) do update set until = greatest(o.until, excluded.until), fresh = true
        returning o.grp, o.account)
    select array_agg(h.grp), array_agg(h.account) into v_grps, v_accounts from held h;
    perform crossover.hold_back(h.grp, h.account) from unnest(v_grps, v_accounts) as h (grp, account);
    return coalesce(cardinality(v_grps), 0);
end $$;

-- Takes what was admitted and not claimed yet back to the gate, once.
create function crossover.take_back_once(p_grp text) returns void
language plpgsql set enable_seqscan = off as $$
begin
    with mine as materialized (
        select r.rank, r.seq from crossover.ready r where r.grp = p_grp and r.gated_for is not null for update skip locked),
    back as (delete from crossover.ready r using mine m where r.rank = m.rank and r.seq = m.seq returning r.*)
    insert into crossover.gate (grp, task, rank, ord, id, due_at, attempt, execute, account)
    select b.grp, false, b.rank, b.seq, b.id, b.due_at, b.attempt, b.execute, b.gated_for from back b;
    with mine as materialized (
        select r.rank, r.vt, r.id from crossover.tasks_ready r
        where r.grp = p_grp and r.gated and r.worker is null and r.wish is null for update skip locked),
    back as (
        delete from crossover.tasks_ready r using mine m where r.rank = m.rank and r.vt = m.vt and r.id = m.id returning r.*)
    insert into crossover.gate (grp, task, rank, ord, id, due_at, created_at, attempt, execute, account, kind)
    select b.grp, true, b.rank, b.vt, b.id, b.due_at, b.created_at, b.attempt, true, b.account, b.kind from back b;
end $$;

-- The same, and it waits for those who have some of it just now, but not for long: a stranger's open transaction that only keeps a row
-- from going must not keep an operator from pausing a group. What that has keeps its place, so no limit is exceeded.
create or replace function crossover.take_back(p_grp text) returns void
language plpgsql set enable_seqscan = off as $$
begin
    for look in 1..50 loop
        perform crossover.take_back_once(p_grp);
        exit when not exists (select from crossover.ready r where r.grp = p_grp and r.gated_for is not null)
            and not exists (select from crossover.tasks_ready r where r.grp = p_grp and r.gated and r.worker is null and r.wish is null);
        perform pg_sleep(0.01);
    end loop;
end $$;

-- What runs at a first limit ---------------------------------------------------------------------------------------

-- Gives copies of a group that run places. False: somebody has one of them just now.
create function crossover.count_copies_in(p_grp text) returns boolean
language plpgsql set enable_seqscan = on as $$
begin
    with mine as materialized (
        select r.id from crossover.running r where r.grp = p_grp and r.gated_for is null for no key update skip locked)
    update crossover.running r set gated_for = p.account from mine m join crossover.pins p on p.id = m.id
    where r.id = m.id and r.gated_for is null;
    return not exists (select from crossover.running r where r.grp = p_grp and r.gated_for is null);
end $$;

drop function crossover.count_in(text);
-- Gives what runs of a group places: it began before the group had limits. From the commit of these on no claim takes any of it, and
-- until this has been done nothing is admitted; so nobody waits for this but its gate. Reads all that is ready, a part at a time, until
-- p_until at most: the next pass goes on there. False: it is to go on, or somebody has some of it just now; nothing is waited for.
create function crossover.count_in(p_grp text, p_until timestamptz) returns boolean
language plpgsql set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_part  constant integer := 10000;
    v_began timestamptz := clock_timestamp();
    v_at    crossover.gate_counts;
    v_last  record;
    v_many  integer;
    v_ranks smallint[];
    v_vts   bigint[];
    v_ids   uuid[];
begin
    if not crossover.count_copies_in(p_grp) then return false; end if;
    insert into crossover.gate_counts (grp) values (p_grp) on conflict do nothing;
    select * into v_at from crossover.gate_counts c where c.grp = p_grp;
    loop
        -- A claim leaves a task where it is, so whatever ran is met.
        select count(*) as many, array_agg(p.rank) filter (where p.runs) as ranks, array_agg(p.vt) filter (where p.runs) as vts,
            array_agg(p.id) filter (where p.runs) as ids, (array_agg(p.rank order by p.rank, p.vt, p.id))[count(*)] as rank,
            (array_agg(p.vt order by p.rank, p.vt, p.id))[count(*)] as vt, (array_agg(p.id order by p.rank, p.vt, p.id))[count(*)] as id
        into v_last from (
            select r.rank, r.vt, r.id, r.grp = p_grp and r.worker is not null and not r.gated as runs from crossover.tasks_ready r
            where (r.rank, r.vt, r.id) > (v_at.rank, v_at.vt, v_at.id) order by r.rank, r.vt, r.id limit v_part) p;
        v_many := v_last.many; v_ranks := v_last.ranks; v_vts := v_last.vts; v_ids := v_last.ids;
        if v_ids is not null then
            with mine as materialized (
                select r.rank, r.vt, r.id from unnest(v_ranks, v_vts, v_ids) as k (rank, vt, id)
                join crossover.tasks_ready r on r.rank = k.rank and r.vt = k.vt and r.id = k.id
                where r.worker is not null and not r.gated for no key update of r skip locked)
            update crossover.tasks_ready r set gated = true from mine m where r.rank = m.rank and r.vt = m.vt and r.id = m.id;
            exit when exists (
                select from unnest(v_ranks, v_vts, v_ids) as k (rank, vt, id)
                join crossover.tasks_ready r on r.rank = k.rank and r.vt = k.vt and r.id = k.id
                where r.worker is not null and not r.gated);
        end if;
        if v_many < v_part then
            update crossover.groups g set counted = true where g.grp = p_grp;
            delete from crossover.gate_counts c where c.grp = p_grp;
            return true;
        end if;
        v_at.rank := v_last.rank; v_at.vt := v_last.vt; v_at.id := v_last.id;
        exit when clock_timestamp() not between v_began and p_until;
    end loop;
    update crossover.gate_counts c set rank = v_at.rank, vt = v_at.vt, id = v_at.id where c.grp = p_grp;
    return false;
end $$;

-- Strays: what is ready of a group with limits and holds no place. As before, and what waits for remote workers, which stands behind all
-- else, too.
create or replace function crossover.take_strays(p_most integer) returns bigint
language plpgsql as $$
declare
    v_copies bigint;
    v_tasks  bigint;
begin
    with head as materialized (
        (select r.rank, r.seq, r.grp, r.gated_for from crossover.ready r order by r.rank, r.seq limit p_most)
        union
        select h.* from crossover.groups g cross join lateral (
            select r.rank, r.seq, r.grp, r.gated_for from crossover.ready r
            where r.grp = g.grp and r.rank > 500 and r.execute order by r.rank - 1000, r.seq limit p_most) h
        where g.gated and starts_with(g.grp, 'remote.')),
    strays as materialized (
        select r.rank, r.seq from head h join crossover.ready r on r.rank = h.rank and r.seq = h.seq
        where h.gated_for is null and exists (select from crossover.groups g where g.grp = h.grp and g.gated)
        for update of r skip locked),
    gone as (delete from crossover.ready r using strays s where r.rank = s.rank and r.seq = s.seq returning r.*)
    insert into crossover.gate (grp, task, rank, ord, id, due_at, attempt, execute, account)
    select g.grp, false, g.rank, g.seq, g.id, g.due_at, g.attempt, g.execute, p.account
    from gone g join crossover.pins p on p.id = g.id;
    get diagnostics v_copies = row_count;
    with head as materialized (
        select r.rank, r.vt, r.id, r.grp, r.gated or r.wish is not null as gated from crossover.tasks_ready r where r.worker is null
        order by r.rank, r.vt, r.id limit p_most),
    strays as materialized (
        select r.rank, r.vt, r.id from head h join crossover.tasks_ready r on r.rank = h.rank and r.vt = h.vt and r.id = h.id
        where not h.gated and r.worker is null and exists (select from crossover.groups g where g.grp = h.grp and g.gated)
        for update of r skip locked),
    gone as (
        delete from crossover.tasks_ready r using strays s
        where r.rank = s.rank and r.vt = s.vt and r.id = s.id and r.worker is null returning r.*)
    insert into crossover.gate (grp, task, rank, ord, id, due_at, created_at, attempt, execute, account, kind)
    select g.grp, true, g.rank, g.vt, g.id, g.due_at, g.created_at, g.attempt, true, g.account, g.kind from gone g;
    get diagnostics v_tasks = row_count;
    return v_copies + v_tasks;
end $$;

-- Takes tasks that a worker has chosen among those that are next in line, because their kinds have room in it. What another has taken
-- meanwhile is left out, and what has no place in its group goes to the gate. The body is that of claim_tasks, which takes the head as
-- it is.
create or replace function crossover.claim_named_tasks(p_worker uuid, p_ranks smallint[], p_vts bigint[], p_ids uuid[])
returns table (rank smallint, vt bigint, id uuid, attempt integer, due_at timestamptz, started_at timestamptz, run_at timestamptz,
    account text, kind text, grp text, policy text, payload text, wish text)
language plpgsql
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
#variable_conflict use_column
begin
    perform from crossover.workers w where w.worker = p_worker for key share;
    if not found then return; end if;
    perform pg_advisory_xact_lock_shared(crossover.claims_lock());
    if exists (select from crossover.groups g where g.gated) then
        with strays as materialized (
            select r.rank, r.vt, r.id from unnest(p_ranks, p_vts, p_ids) as n (rank, vt, id)
            join crossover.tasks_ready r on r.rank = n.rank and r.vt = n.vt and r.id = n.id
            where r.worker is null and not r.gated and r.wish is null
                and exists (select from crossover.groups g where g.grp = r.grp and g.gated)
            for update of r skip locked),
        gone as (
            delete from crossover.tasks_ready r using strays s where r.rank = s.rank and r.vt = s.vt and r.id = s.id returning r.*)
        insert into crossover.gate (grp, task, rank, ord, id, due_at, created_at, attempt, execute, account, kind)
        select g.grp, true, g.rank, g.vt, g.id, g.due_at, g.created_at, g.attempt, true, g.account, g.kind from gone g;
    end if;
    return query with chosen as materialized (
        select r.rank, r.vt, r.id from unnest(p_ranks, p_vts, p_ids) as n (rank, vt, id)
        join crossover.tasks_ready r on r.rank = n.rank and r.vt = n.vt and r.id = n.id
        where r.worker is null
            -- A stray that somebody has just now is left to the next pass at the gate.
            and (r.gated or r.wish is not null or not exists (select from crossover.groups g where g.grp = r.grp and g.gated))
        for no key update of r skip locked),
    taken as (
        update crossover.tasks_ready r set worker = p_worker, started_at = clock_timestamp() from chosen c
        where r.rank = c.rank and r.vt = c.vt and r.id = c.id
        returning r.rank, r.vt, r.id, r.created_at, r.attempt, r.due_at, r.started_at, r.account, r.kind, r.grp, r.wish)
    select t.rank, t.vt, t.id, t.attempt, t.due_at, t.started_at, k.run_at, t.account, t.kind, t.grp, k.policy::text, k.payload::text, t.wish
    from taken t left join crossover.tasks k on k.id = t.id and k.created_at = t.created_at;
end $$;

-- Admission --------------------------------------------------------------------------------------------------------

-- Takes what has started of accounts, each named once for each start, out of what their rate lets start.
create function crossover.spend_of_accounts(p_group crossover.groups, p_accounts text[], p_now timestamptz) returns void
language plpgsql as $$
declare
    v_burst integer := crossover.burst_of(p_group.account_rate, p_group.account_burst);
begin
    if p_group.account_rate is null then return; end if;
    perform crossover.spend(p_group.grp, a.account,
        crossover.tokens_now(p_group.grp, a.account, p_group.account_rate, v_burst, p_now) - a.started, p_now)
    from (select u.account, count(*) as started from unnest(p_accounts) as u (account) group by u.account) a;
end $$;

drop function crossover.give_way(crossover.groups, integer, timestamptz);
drop function crossover.let_in(uuid[], boolean);
-- Lets these in, with places or, where their group has no limits any more, without. Whose they are, and how far the most urgent tasks
-- of them are in virtual time.
create function crossover.let_in(p_ids uuid[], p_places boolean, out accounts text[], out vt bigint)
language plpgsql as $$
#variable_conflict use_column
begin
    -- Whoever has a row just now takes it away or makes another of it.
    with free as materialized (select g.id from crossover.gate g where g.id = any (p_ids) for update skip locked),
    gone as (delete from crossover.gate g using free f where g.id = f.id returning g.*),
    copies as (
        insert into crossover.ready (seq, id, due_at, attempt, rank, execute, grp, gated_for) overriding system value
        select g.ord, g.id, g.due_at, g.attempt, g.rank, g.execute, g.grp, case when p_places then g.account end
        from gone g where not g.task on conflict do nothing),
    tasks as (
        insert into crossover.tasks_ready (rank, vt, id, created_at, due_at, attempt, account, kind, grp, gated)
        select g.rank, g.ord, g.id, g.created_at, g.due_at, g.attempt, g.account, g.kind, g.grp, p_places
        from gone g where g.task on conflict do nothing)
    select coalesce(array_agg(g.account), '{}'),
        max(g.ord) filter (where g.task and g.rank = (select min(f.rank) from gone f where f.task))
    into accounts, vt from gone g;
end $$;

-- Executions that wait and may take the place of a rehearsal, as far as their accounts may start anything: at most p_most, in the order
-- in which they would come. Where accounts have limits, the next 500 that wait each have as many as could have places; p_givers are the
-- accounts of the rehearsals that can give way, each as often as it has some.
create function crossover.next_executions(
    p_group crossover.groups, p_most integer, p_givers text[], p_now timestamptz, out ids uuid[], out accounts text[])
language plpgsql as $$
declare
    v_looks constant integer := 500;
    v_last text;
    v_many integer;
begin
    if p_group.max_per_account is null and p_group.account_rate is null
        and not (p_group.heed_retry_after and exists (
            select from crossover.group_holds o where o.grp = p_group.grp and o.until > p_now)) then
        select array_agg(i.id order by i.rank, i.n, i.id), array_agg(i.account order by i.rank, i.n, i.id) into ids, accounts from (
            select w.id, w.account, w.rank, row_number() over (partition by w.task, w.rank order by w.ord, w.id) as n from (
                (select g.id, g.account, g.task, g.rank, g.ord from crossover.gate g where g.grp = p_group.grp and g.task
                 order by g.rank, g.ord, g.id limit p_most)
                union all
                (select g.id, g.account, g.task, g.rank, g.ord from crossover.gate g
                 where g.grp = p_group.grp and g.execute and not g.task order by g.rank, g.ord, g.id limit p_most)) w) i;
        return;
    end if;
    with recursive waiting (account, n) as (
        (select g.account, 1 from crossover.gate g
         where g.grp = p_group.grp and g.account > p_group.giving order by g.account limit 1)
        union all
        select (select g.account from crossover.gate g
                where g.grp = p_group.grp and g.account > w.account order by g.account limit 1), w.n + 1
        from waiting w where w.account is not null and w.n < v_looks),
    free as materialized (
        select w.account, case
                when p_group.heed_retry_after and exists (select from crossover.group_holds o
                    where o.grp = p_group.grp and o.account = w.account and o.until > p_now) then 0
                -- What is no limit is null, which `least` leaves out.
                else least(p_most, greatest(p_group.max_per_account - coalesce(h.held, 0), 0) + coalesce(v.many, 0),
                    case when p_group.account_rate is not null then least(
                        floor(crossover.tokens_now(p_group.grp, w.account, p_group.account_rate,
                            crossover.burst_of(p_group.account_rate, p_group.account_burst), p_now)),
                        crossover.burst_of(p_group.account_rate, p_group.account_burst)
                            - crossover.unclaimed_of(p_group.grp, w.account)) end)::integer end as most
        from waiting w
        left join crossover.places_of(p_group.grp) h on h.account = w.account
        left join (select u.account, count(*) as many from unnest(p_givers) as u (account) group by u.account) v on v.account = w.account
        where w.account is not null),
    heads as (
        select x.id, f.account, x.rank, x.n from free f cross join lateral (
            select i.id, i.rank, row_number() over (order by i.rank, i.n, i.id) as n from (
                select w.id, w.rank, row_number() over (partition by w.task, w.rank order by w.ord, w.id) as n from (
                    (select g.id, g.task, g.rank, g.ord from crossover.gate g
                     where g.grp = p_group.grp and g.account = f.account and g.task
                     order by g.rank, g.ord, g.id limit f.most)
                    union all
                    (select g.id, g.task, g.rank, g.ord from crossover.gate g
                     where g.grp = p_group.grp and g.account = f.account and g.execute and not g.task
                     order by g.rank, g.ord, g.id limit f.most)) w) i
            order by i.rank, i.n, i.id limit f.most) x
        where f.most > 0)
    select (select max(f.account) from free f), (select count(*) from free f),
        (select array_agg(h.id order by h.rank, h.n, h.id) from heads h), (select array_agg(h.account order by h.rank, h.n, h.id) from heads h)
    into v_last, v_many, ids, accounts;
    v_last := case when v_many < v_looks then '' else v_last end;
    update crossover.groups g set giving = v_last where g.grp = p_group.grp and g.giving <> v_last;
end $$;

-- Where a group, or an account in it, has no place left: rehearsals whose real run was not seen to begin give theirs to executions
-- that wait, at most p_most. Otherwise work whose other side is away would hold up what it has nothing to do with. First those that
-- nobody has claimed, the last first, which go back to the gate: where all workers are full of rehearsals nobody will claim them. Then
-- those that are held, the oldest first, which go on without. Whose executions were let in, and how far they are in virtual time.
create function crossover.give_way(p_group crossover.groups, p_most integer, p_now timestamptz, out accounts text[], out vt bigint)
language plpgsql as $$
#variable_conflict use_column
declare
    v_held    bigint;
    v_of      jsonb;
    v_givers  uuid[];
    v_theirs  text[];
    v_ready   integer;
    v_next    integer := 1;
    v_at      integer;
    v_full    boolean;
    v_one     record;
    v_backs   uuid[] := '{}';
    v_gives   uuid[] := '{}';
    v_takes   uuid[] := '{}';
begin
    accounts := '{}';
    if not exists (select from crossover.gate g where g.grp = p_group.grp and g.task)
        and not exists (select from crossover.gate g where g.grp = p_group.grp and g.execute and not g.task) then
        return;
    end if;
    -- Of each account as many as could be asked for, and those that come first of all.
    select array_agg(g.id order by g.place), array_agg(g.account order by g.place), count(*) filter (where not g.begun)
    into v_givers, v_theirs, v_ready from (
        select i.*, row_number() over (order by i.begun, i.urgent desc, i.since, i.id) as place,
            row_number() over (partition by i.account order by i.begun, i.urgent desc, i.since, i.id) as of_account
        from (
            select r.id, r.gated_for as account, false as begun, r.rank::bigint as urgent, -r.seq::float8 as since
            from crossover.ready r where r.grp = p_group.grp and r.gated_for is not null and not r.execute
            union all
            select r.id, r.gated_for, true, 0, extract(epoch from r.started_at)::float8 from crossover.running r
            where r.grp = p_group.grp and r.gated_for is not null and not r.execute
                and not exists (select from crossover.sightings s
                    where s.id = r.id and s.side = 'temporal' and s.what = 'dequeued' and not s.rehearsal and s.attempt >= r.attempt
                        and s.seen_at > r.due_at - interval '1 day')) i) g
    where g.place <= p_most or g.of_account <= p_most and p_group.max_per_account is not null;
    if v_givers is null then return; end if;
    v_held := crossover.places_held(p_group.grp);
    select coalesce(jsonb_object_agg(o.account, o.held), '{}') into v_of from crossover.places_of(p_group.grp) o;
    <<takers>>
    for v_one in
        select n.id, n.account from crossover.next_executions(p_group, p_most, v_theirs, p_now) e
        cross join lateral unnest(e.ids, e.accounts) with ordinality as n (id, account, place) order by n.place
    loop
        exit when cardinality(v_takes) >= p_most or cardinality(v_backs) + cardinality(v_gives) >= p_most;
        v_at := 0;
        loop
            v_full := coalesce(coalesce((v_of ->> v_one.account)::bigint, 0) >= p_group.max_per_account, false);
            exit when not v_full and coalesce(v_held < p_group.max_running, true);
            if v_full then
                v_at := array_position(v_theirs, v_one.account, v_at + 1);
            else
                while v_theirs[v_next] is null and v_next <= cardinality(v_theirs) loop v_next := v_next + 1; end loop;
                v_at := case when v_next <= cardinality(v_theirs) then v_next end;
            end if;
            -- Of a full account nothing gives way; or nothing at all, and then none of the others can have a place either.
            continue takers when v_at is null and v_full;
            exit takers when v_at is null;
            -- Whoever has the row just now claims it, ends it or prolongs its lease.
            if v_at <= v_ready then
                perform from crossover.ready r
                where r.id = v_givers[v_at] and not r.execute and r.gated_for is not null for update skip locked;
            else
                perform from crossover.running r
                where r.id = v_givers[v_at] and not r.execute and r.gated_for is not null for update skip locked;
            end if;
            if found then
                -- One that is given up above a limit that was lowered makes no room yet.
                if v_at <= v_ready then v_backs := v_backs || v_givers[v_at]; else v_gives := v_gives || v_givers[v_at]; end if;
                v_held := v_held - 1;
                v_of := jsonb_set(v_of, array[v_theirs[v_at]], to_jsonb(coalesce((v_of ->> v_theirs[v_at])::bigint, 1) - 1));
            end if;
            v_theirs[v_at] := null;
        end loop;
        v_takes := v_takes || v_one.id;
        v_held := v_held + 1;
        v_of := jsonb_set(v_of, array[v_one.account], to_jsonb(coalesce((v_of ->> v_one.account)::bigint, 0) + 1));
    end loop;
    update crossover.running r set gated_for = null where r.id = any (v_gives) and not r.execute;
    with back as (delete from crossover.ready r where r.id = any (v_backs) and not r.execute returning r.*)
    insert into crossover.gate (grp, task, rank, ord, id, due_at, attempt, execute, account)
    select b.grp, false, b.rank, b.seq, b.id, b.due_at, b.attempt, b.execute, b.gated_for from back b;
    select l.accounts, l.vt into accounts, vt from crossover.let_in(v_takes, true) l;
end $$;

-- Admits what there is room for in a group, at most p_most: how many, how many of these in the place of a rehearsal, and in how many
-- milliseconds a rate lets more in.
create or replace function crossover.admit_group(p_grp text, p_most integer, out admitted bigint, out gave_way bigint, out wait_ms double precision)
language plpgsql as $$
declare
    v_now    timestamptz := clock_timestamp();
    v_group  crossover.groups;
    v_most   bigint := p_most;
    v_room   bigint;
    v_tokens double precision;
    v_burst  integer;
    v_one    record;
    v_in     record;
    v_vt     bigint;
begin
    admitted := 0; gave_way := 0;
    select * into v_group from crossover.groups g where g.grp = p_grp and g.gated;
    if not found then
        admitted := (select cardinality(l.accounts) from crossover.let_in(crossover.next_at_gate(p_grp, p_most), false) l);
        return;
    end if;
    if v_group.paused_since is not null then
        -- What somebody had when it was paused.
        perform crossover.take_back_once(p_grp);
        return;
    end if;
    if not v_group.counted then return; end if;
    if v_group.rate is not null then
        -- A clock that was put back must not stop the rate until it is where it was.
        update crossover.group_tokens t set at = v_now where t.grp = p_grp and t.account = '' and t.at > v_now;
        v_burst := crossover.burst_of(v_group.rate, v_group.burst);
        v_tokens := crossover.tokens_now(p_grp, '', v_group.rate, v_burst, v_now);
        -- What is admitted and waits for a worker starts later, and all at once: no more than a burst of it.
        v_most := least(v_most, floor(v_tokens)::bigint, v_burst - crossover.places_unclaimed(p_grp));
    end if;
    if v_group.heed_retry_after then
        -- Those that were told while the pass before was on its way.
        for v_one in
            with told as materialized (
                select o.account from crossover.group_holds o where o.grp = p_grp and o.fresh limit p_most for update skip locked)
            update crossover.group_holds o set fresh = false from told t where o.grp = p_grp and o.account = t.account
            returning o.account, o.until
        loop
            if v_one.until > v_now then perform crossover.hold_back(p_grp, v_one.account); end if;
        end loop;
        -- So that the first who is told holds back nearly all.
        v_most := least(v_most, p_most - crossover.places_unclaimed(p_grp));
    end if;
    v_room := v_most;
    if v_most > 0 and v_group.max_running is not null then
        v_room := least(v_most, v_group.max_running - crossover.places_held(p_grp));
    end if;
    if v_room > 0 then
        select * into v_in from crossover.let_in(case
            when v_group.max_per_account is not null or v_group.account_rate is not null
                or v_group.heed_retry_after and exists (select from crossover.group_holds o where o.grp = p_grp and o.until > v_now)
            then crossover.next_of_accounts(v_group, v_room::integer, 500, v_now)
            else crossover.next_at_gate(p_grp, v_room::integer) end, true);
        admitted := cardinality(v_in.accounts);
        v_vt := v_in.vt;
        -- At once: who takes a rehearsal's place is asked what it has left.
        perform crossover.spend_of_accounts(v_group, v_in.accounts, v_now);
    end if;
    v_most := v_most - admitted;
    if v_most > 0 and (v_group.max_running is not null or v_group.max_per_account is not null) then
        select * into v_in from crossover.give_way(v_group, least(v_most, 100)::integer, v_now);
        gave_way := cardinality(v_in.accounts);
        admitted := admitted + gave_way;
        v_vt := greatest(v_vt, v_in.vt);
        perform crossover.spend_of_accounts(v_group, v_in.accounts, v_now);
    end if;
    if v_group.rate is not null then
        if admitted > 0 then perform crossover.spend(p_grp, '', v_tokens - admitted, v_now); end if;
        if v_tokens - admitted < 1 then wait_ms := (1 - v_tokens + admitted) * 1000 / v_group.rate; end if;
    end if;
    if v_group.account_rate is not null and admitted > 0 then wait_ms := least(wait_ms, 1000 / v_group.account_rate); end if;
    update crossover.groups g set vt = v_vt where g.grp = p_grp and g.vt < v_vt;
end $$;

-- A pass: admits in every group that waits, from the one after p_from on; after 200 ms it ends, and `go_on` is for the next one.
-- `busy`: another one is at it. `gates`: some group has limits, or something is still at the gate. `wait_ms`: by a rate, more may
-- be let in after so long. p_look: look for strays, too. p_tidy: forget what rates and holds no longer need. Either is left out where
-- another process has just done it.
create or replace function crossover.admit(
    p_most integer, p_look boolean, p_tidy boolean, p_from text,
    out busy boolean, out gates boolean, out admitted bigint, out strays bigint, out gave_way bigint, out wait_ms double precision,
    out go_on text)
language plpgsql set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
declare
    v_began  timestamptz := clock_timestamp();
    v_limits boolean     := exists (select from crossover.groups g where g.gated);
    v_upkeep crossover.gate_upkeep;
    v_grp    text;
    v_one    record;
begin
    busy := false; gates := v_limits; admitted := 0; strays := 0; gave_way := 0;
    if not gates then
        gates := exists (select from crossover.gate);
        if not gates then return; end if;
    end if;
    if not pg_try_advisory_xact_lock(crossover.gate_lock()) then busy := true; return; end if;
    select * into v_upkeep from crossover.gate_upkeep u where u.one;
    if v_limits and p_look and (v_began between v_upkeep.looked_at and v_upkeep.looked_at + interval '80 milliseconds') is not true then
        strays := crossover.take_strays(p_most);
        -- Where there were some there may be more.
        update crossover.gate_upkeep u set looked_at = case when strays = 0 then v_began end where u.one;
    end if;
    if p_tidy and (v_began between v_upkeep.tidied_at and v_upkeep.tidied_at + interval '4 seconds') is not true then
        perform crossover.forget_spent(p_most);
        update crossover.gate_upkeep u set tidied_at = v_began where u.one;
    end if;
    perform crossover.count_in(g.grp, v_began + interval '100 milliseconds') from crossover.groups g where g.gated and not g.counted;
    select min(g.grp) into v_grp from crossover.gate g where g.grp > coalesce(p_from, '');
    while v_grp is not null loop
        select * into v_one from crossover.admit_group(v_grp, p_most);
        admitted := admitted + v_one.admitted;
        gave_way := gave_way + v_one.gave_way;
        wait_ms := least(wait_ms, v_one.wait_ms);
        if clock_timestamp() not between v_began and v_began + interval '200 milliseconds' then go_on := v_grp; end if;
        select min(g.grp) into v_grp from crossover.gate g where g.grp > v_grp;
        if v_grp is null then go_on := null; end if;
        exit when go_on is not null;
    end loop;
end $$;

-- Changes ----------------------------------------------------------------------------------------------------------

-- Tasks of a group that has no limits any more stand among all others again, and have come so far.
create function crossover.give_virtual_time_back(p_vt bigint) returns void
language sql as $$ update crossover.virtual_time set vt = p_vt where vt < p_vt $$;

-- What follows from a change of a group, in its transaction and under gate_lock: what was admitted and not begun is admitted
-- anew by the new limits, and what runs is counted in by the next pass, before it admits more.
create or replace function crossover.group_changed(p_grp text, p_was_gated boolean) returns void
language plpgsql set lock_timeout = '2s' as $$
begin
    delete from crossover.group_holds o
    where o.grp = p_grp and not exists (select from crossover.groups g where g.grp = p_grp and g.heed_retry_after);
    if not crossover.is_gated(p_grp) then
        perform crossover.give_virtual_time_back(g.vt) from crossover.groups g where g.grp = p_grp and p_was_gated;
        return;
    end if;
    if not p_was_gated then
        update crossover.groups g set counted = false, vt = (select v.vt from crossover.virtual_time v) where g.grp = p_grp;
        delete from crossover.gate_counts c where c.grp = p_grp;
        -- What of it is ready is looked for at once.
        update crossover.gate_upkeep u set looked_at = null where u.one;
        -- A claim that knows nothing of the limits ends before this has the lock, and one that comes later knows of them.
        perform pg_advisory_xact_lock(crossover.claims_lock());
    end if;
    perform crossover.take_back(p_grp);
end $$;

-- A transaction that sees no more than was there when it began would take nothing back of what was admitted since.
create function crossover.must_see_all() returns void
language plpgsql as $$
begin
    if current_setting('transaction_isolation') <> 'read committed' then
        raise exception using errcode = '25001',
            message = format('groups can be changed at the isolation level read committed alone, and this transaction has %s',
                current_setting('transaction_isolation')),
            hint = 'Begin a transaction of its own for it.';
    end if;
end $$;

-- The faults of a change of limits.
create or replace function crossover.group_faults(p_grp text, p_limits jsonb) returns setof text
language plpgsql immutable as $$
declare
    v_name text;
begin
    return query select f from (values (coalesce(crossover.name_fault('grp', p_grp, 100),
        case when p_grp is null then 'grp: is missing' end))) as v (f) where f is not null;
    if p_limits is null or jsonb_typeof(p_limits) <> 'object' then
        return next 'limits: must be an object, like {"max_running": 10}';
        return;
    end if;
    if p_limits = '{}' then
        return next 'limits: name at least one, like {"max_running": 10}';
    end if;
    return query select crossover.field_faults('', p_limits::json, array['max_running', 'max_per_account', 'rate', 'burst', 'account_rate',
        'account_burst', 'heed_retry_after', 'max_waiting']);
    foreach v_name in array array['max_running', 'max_per_account', 'burst', 'account_burst', 'max_waiting'] loop
        return query select f || case when p_limits ->> v_name ~ '^-?[0-9.]+$' and (p_limits ->> v_name)::numeric <= 0
                and v_name in ('max_running', 'max_per_account') then '; to let nothing start, pause the group' else '' end
            from (values (crossover.number_fault(v_name, (p_limits -> v_name)::json, 1, 1000000))) as v (f) where f is not null;
    end loop;
    foreach v_name in array array['rate', 'account_rate'] loop
        return query select f from (values (
            crossover.fraction_fault(v_name, nullif(p_limits -> v_name, 'null'::jsonb)::json, 0.0001, 1000000))) as v (f) where f is not null;
    end loop;
    if jsonb_typeof(p_limits -> 'heed_retry_after') not in ('boolean', 'null') then
        return next format('heed_retry_after: must be true or false, is %s', left((p_limits -> 'heed_retry_after')::text, 40));
    end if;
end $$;

create or replace function crossover.set_group(grp text, limits jsonb, who text default session_user) returns crossover.groups
language plpgsql as $$
#variable_conflict use_column
declare
    v_faults text[] := array(select crossover.group_faults(set_group.grp, set_group.limits));
    v_was    boolean;
    v_group  crossover.groups;
begin
    if v_faults <> '{}' then
        raise exception using errcode = '22023', message = 'not set: ' || array_to_string(v_faults, '; ');
    end if;
    perform crossover.must_see_all();
    perform pg_advisory_xact_lock(crossover.gate_lock());
    v_was := crossover.is_gated(set_group.grp);
    insert into crossover.groups as g (grp, max_running, max_per_account, rate, burst, account_rate, account_burst,
        max_waiting, heed_retry_after, changed_by)
    values (set_group.grp, (limits ->> 'max_running')::integer, (limits ->> 'max_per_account')::integer,
        (limits ->> 'rate')::double precision, (limits ->> 'burst')::integer, (limits ->> 'account_rate')::double precision,
        (limits ->> 'account_burst')::integer, (limits ->> 'max_waiting')::integer,
        coalesce((limits ->> 'heed_retry_after')::boolean, false), who)
    on conflict (grp) do update set
        max_running = case when limits ? 'max_running' then excluded.max_running else g.max_running end,
        max_per_account = case when limits ? 'max_per_account' then excluded.max_per_account else g.max_per_account end,
        rate = case when limits ? 'rate' then excluded.rate else g.rate end,
        burst = case when limits ? 'burst' then excluded.burst else g.burst end,
        account_rate = case when limits ? 'account_rate' then excluded.account_rate else g.account_rate end,
        account_burst = case when limits ? 'account_burst' then excluded.account_burst else g.account_burst end,
        max_waiting = case when limits ? 'max_waiting' then excluded.max_waiting else g.max_waiting end,
        heed_retry_after = case when limits ? 'heed_retry_after' then excluded.heed_retry_after else g.heed_retry_after end,
        changed_at = clock_timestamp(), changed_by = excluded.changed_by;
    perform crossover.group_changed(set_group.grp, v_was);
    select * into v_group from crossover.groups g where g.grp = set_group.grp;
    return v_group;
end $$;

create or replace function crossover.pause_group(grp text, reason text, who text default session_user) returns crossover.groups
language plpgsql as $$
#variable_conflict use_column
declare
    v_faults text[] := array_remove(array[
        coalesce(crossover.name_fault('grp', pause_group.grp, 100), case when pause_group.grp is null then 'grp: is missing' end),
        crossover.name_fault('reason', pause_group.reason, 500)], null);
    v_was    boolean;
    v_group  crossover.groups;
begin
    if v_faults <> '{}' then
        raise exception using errcode = '22023', message = 'not paused: ' || array_to_string(v_faults, '; ');
    end if;
    perform crossover.must_see_all();
    perform pg_advisory_xact_lock(crossover.gate_lock());
    v_was := crossover.is_gated(pause_group.grp);
    insert into crossover.groups as g (grp, paused_since, paused_reason, changed_by)
    values (pause_group.grp, clock_timestamp(), reason, who)
    on conflict (grp) do update set paused_since = coalesce(g.paused_since, excluded.paused_since),
        paused_reason = excluded.paused_reason, changed_at = clock_timestamp(), changed_by = excluded.changed_by;
    perform crossover.group_changed(pause_group.grp, v_was);
    select * into v_group from crossover.groups g where g.grp = pause_group.grp;
    return v_group;
end $$;

create or replace function crossover.resume_group(grp text, who text default session_user) returns crossover.groups
language plpgsql as $$
#variable_conflict use_column
declare
    v_group crossover.groups;
begin
    perform pg_advisory_xact_lock(crossover.gate_lock());
    update crossover.groups g set paused_since = null, paused_reason = null, changed_at = clock_timestamp(), changed_by = who
    where g.grp = resume_group.grp returning * into v_group;
    if not v_group.gated then perform crossover.give_virtual_time_back(v_group.vt); end if;
    return v_group;
end $$;

create or replace function crossover.unset_group(grp text) returns boolean
language plpgsql as $$
#variable_conflict use_column
declare
    v_vt bigint;
begin
    perform pg_advisory_xact_lock(crossover.gate_lock());
    delete from crossover.group_holds o where o.grp = unset_group.grp;
    delete from crossover.gate_counts c where c.grp = unset_group.grp;
    delete from crossover.groups g where g.grp = unset_group.grp returning case when g.gated then g.vt end into v_vt;
    if not found then return false; end if;
    perform crossover.give_virtual_time_back(v_vt);
    return true;
end $$;

-- As before, in one order.
create or replace function crossover.forget_rehearsals(p_ids uuid[]) returns void
language plpgsql as $$
begin
    delete from crossover.scheduled where id = any (p_ids) and not execute;
    perform from crossover.gate g where g.id = any (p_ids) and not g.execute order by g.id for update;
    delete from crossover.gate where id = any (p_ids) and not execute;
    perform from crossover.ready r where r.id = any (p_ids) and not r.execute order by r.id for update;
    delete from crossover.ready where id = any (p_ids) and not execute;
    -- What is ready may be taken back meanwhile.
    delete from crossover.gate where id = any (p_ids) and not execute;
end $$;
