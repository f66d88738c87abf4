-- Groups: how much of a group may run at once and start in a second, in all and of each account; pauses; how much of it may wait.
-- docs/groups.md has how to use them, docs/task-states.md the picture.
--
-- Work of a group that has a limit waits at the gate, and not among what is ready. One pass at a time (gate_lock) admits as much
-- as there are free places. A place is held from admission until the attempt has ended: by a row of `ready`, `running` or
-- `tasks_ready` that is marked as gated. Only a pass adds to them, and whatever leaves these tables gives its place back, however it
-- leaves; so there is no counter that could be wrong after a crash. What is not marked and is of a group with limits is a stray (it
-- was ready before there were limits): a claim takes it to the gate instead of running it.

create table crossover.groups (
    grp              text primary key,
    max_running      integer check (max_running >= 1),
    max_per_account  integer check (max_per_account >= 1),
    rate             double precision check (rate > 0),
    burst            integer check (burst >= 1),
    account_rate     double precision check (account_rate > 0),
    account_burst    integer check (account_burst >= 1),
    heed_retry_after boolean not null default false,
    max_waiting      integer check (max_waiting >= 1),
    paused_since     timestamptz,
    paused_reason    text,
    counted          boolean not null default false,
    turn             text not null default '',
    changed_at       timestamptz not null default clock_timestamp(),
    changed_by       text not null,
    gated            boolean not null generated always as (
        max_running is not null or max_per_account is not null or rate is not null or account_rate is not null
        or heed_retry_after or max_waiting is not null or paused_since is not null) stored
) with (fillfactor = 50);
-- Whether there is any, without reading the table: functions that must not scan others can't scan this one either.
create index groups_gated on crossover.groups (grp) where gated;
comment on table crossover.groups is 'Groups with limits. Change them with crossover.set_group, pause_group, resume_group and unset_group.';
comment on column crossover.groups.max_running is 'At most so many attempts at once, rehearsals among them, in all workers. Null: no limit.';
comment on column crossover.groups.max_per_account is 'At most so many of one account.';
comment on column crossover.groups.rate is 'So many attempts may start in a second.';
comment on column crossover.groups.burst is 'So many may start at once after a quiet time. Null: the starts of a second, at least one.';
comment on column crossover.groups.account_rate is 'The same for each account.';
comment on column crossover.groups.heed_retry_after is 'A failure that says when to come back holds the rest of its account back until then.';
comment on column crossover.groups.max_waiting is 'Routers refuse more work of it while so much waits.';
comment on column crossover.groups.counted is 'What ran when it got its first limit holds places. Before that nothing more of it is admitted.';
comment on column crossover.groups.turn is 'Where the next pass goes on, among more accounts than one pass looks at.';

-- What may start as soon as its group has a free place.
create table crossover.gate (
    grp        text not null,
    task       boolean not null,
    rank       smallint not null,
    ord        bigint not null,
    id         uuid not null,
    due_at     timestamptz not null,
    created_at timestamptz,
    attempt    integer not null,
    execute    boolean not null,
    account    text not null,
    kind       text,
    primary key (grp, task, rank, ord, id)
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 2000);
comment on column crossover.gate.ord is 'The order within a rank: seq of a copy in `ready`, vt of a task.';
comment on column crossover.gate.kind is 'With created_at: of a task.';
create unique index gate_id on crossover.gate (id);
create index gate_accounts on crossover.gate (grp, account, task, rank, ord, id);
-- Who may take the place of a rehearsal.
create index gate_executions on crossover.gate (grp, rank, ord, id) where execute and not task;

-- What may still start by a rate: so many, as of `at`. Changed by passes alone. No row: all of the burst.
create table crossover.group_tokens (
    grp     text not null,
    account text not null,
    tokens  double precision not null,
    at      timestamptz not null,
    primary key (grp, account)
) with (fillfactor = 50);
comment on column crossover.group_tokens.account is 'Empty: the whole group.';

-- Accounts that a third party wants to come back later.
create table crossover.group_holds (
    grp     text not null,
    account text not null,
    until   timestamptz not null,
    primary key (grp, account)
) with (fillfactor = 70);

-- Shares of accounts that do not all count the same.
create table crossover.account_weights (
    account    text primary key,
    weight     double precision not null check (weight between 0.001 and 1000),
    changed_at timestamptz not null default clock_timestamp(),
    changed_by text not null
);
comment on table crossover.account_weights is 'An account without a row weighs 1; one of weight 3 gets three times the share. Change them with crossover.set_weight.';

-- The gate ---------------------------------------------------------------------------------------------------

-- Whoever admits, and whoever changes a group, one at a time.
create function crossover.gate_lock() returns bigint
language sql immutable parallel safe as $$ select hashtextextended('crossover.gate', 0) $$;

-- Claims share it until they commit; a group that gets its first limit excludes them for a moment. So whatever claims takes it before
-- it looks whether a group has limits.
create function crossover.claims_lock() returns bigint
language sql immutable parallel safe as $$ select hashtextextended('crossover.claims', 0) $$;

-- At the begin of a claim that is one statement: whether some group has limits. Volatile, as the next one: each looks with a snapshot
-- of its own, which is younger than the lock and than the statement's.
create function crossover.begin_claim() returns boolean
language plpgsql as $$
begin
    perform pg_advisory_xact_lock_shared(crossover.claims_lock());
    return exists (select from crossover.groups g where g.gated);
end $$;
create function crossover.is_gated_now(p_grp text) returns boolean
language plpgsql as $$
begin
    return exists (select from crossover.groups g where g.grp = p_grp and g.gated);
end $$;

create function crossover.is_gated(p_grp text) returns boolean
language sql stable as $$ select exists (select from crossover.groups g where g.grp = p_grp and g.gated) $$;

-- What work at the gate of a group waits for.
create function crossover.gate_reason(p_grp text) returns text
language sql stable as $$
    select coalesce((
        select case when g.paused_since is not null
            then format('its group «%s» is paused since %s: %s', g.grp, to_char(g.paused_since at time zone 'utc', 'YYYY-MM-DD HH24:MI:SS"Z"'),
                coalesce(g.paused_reason, 'no reason is given'))
            else format('room in its group «%s»: %s', g.grp, coalesce(nullif(concat_ws(', ',
                'at most ' || g.max_running || ' at a time', 'at most ' || g.max_per_account || ' of an account',
                'at most ' || g.rate || ' a second', 'at most ' || g.account_rate || ' a second of an account',
                case when g.heed_retry_after then 'none of an account that was told to come back later' end), ''), 'it has no limits')) end
        from crossover.groups g where g.grp = p_grp and g.gated),
        format('the next pass at the gate of its group «%s», which has no limits', p_grp))
$$;

-- How many places of a group are taken.
create function crossover.places_held(p_grp text) returns bigint
language sql stable set enable_seqscan = off set jit = off as $$
    select (select count(*) from crossover.ready r where r.grp = p_grp and r.gated_for is not null)
        + (select count(*) from crossover.running r where r.grp = p_grp and r.gated_for is not null)
        + (select count(*) from crossover.tasks_ready r where r.grp = p_grp and r.gated)
$$;

-- And for whom.
create function crossover.places_of(p_grp text) returns table (account text, held bigint)
language sql stable set enable_seqscan = off set jit = off as $$
    select h.account, count(*) from (
        select r.gated_for as account from crossover.ready r where r.grp = p_grp and r.gated_for is not null
        union all
        select r.gated_for from crossover.running r where r.grp = p_grp and r.gated_for is not null
        union all
        select r.account from crossover.tasks_ready r where r.grp = p_grp and r.gated) h
    group by h.account
$$;

-- What a rate lets start now.
create function crossover.tokens_now(p_grp text, p_account text, p_rate double precision, p_burst integer, p_now timestamptz)
returns double precision language sql stable as $$
    select coalesce((
        select least(p_burst, t.tokens + greatest(extract(epoch from p_now - t.at), 0) * p_rate)
        from crossover.group_tokens t where t.grp = p_grp and t.account = p_account), p_burst)
$$;

create function crossover.burst_of(p_rate double precision, p_burst integer) returns integer
language sql immutable as $$ select coalesce(p_burst, greatest(1, ceil(p_rate))::integer) $$;

-- How much was admitted and has not begun.
create function crossover.places_unclaimed(p_grp text) returns bigint
language sql stable set enable_seqscan = off set jit = off as $$
    -- A rehearsal calls nobody.
    select (select count(*) from crossover.ready r where r.grp = p_grp and r.gated_for is not null and r.execute)
        + (select count(*) from crossover.tasks_ready r where r.grp = p_grp and r.gated and r.worker is null)
$$;

-- The same of an account.
create function crossover.unclaimed_of(p_grp text, p_account text) returns bigint
language sql stable set enable_seqscan = off set jit = off as $$
    select (select count(*) from crossover.ready r where r.grp = p_grp and r.gated_for = p_account and r.execute)
        + (select count(*) from crossover.tasks_ready r where r.grp = p_grp and r.account = p_account and r.gated and r.worker is null)
$$;

-- Takes a copy to the gate.
create function crossover.place_at_gate(p_id uuid, p_due_at timestamptz, p_attempt integer, p_rank smallint, p_execute boolean, p_grp text)
returns void language sql as $$
    insert into crossover.gate (grp, task, rank, ord, id, due_at, attempt, execute, account)
    select p_grp, false, p_rank, nextval('crossover.ready_seq_seq'), p_id, p_due_at, p_attempt, p_execute, p.account
    from crossover.pins p where p.id = p_id
    on conflict do nothing
$$;

-- Takes what is next in line, and has no place though its group has limits, to the gate. Claims do so with what they meet; this is
-- ahead of them, for where it is much. Reads p_most rows of each kind.
create function crossover.take_strays(p_most integer) returns bigint
language plpgsql as $$
declare
    v_copies bigint;
    v_tasks  bigint;
begin
    with head as materialized (
        select r.rank, r.seq, r.grp, r.gated_for from crossover.ready r order by r.rank, r.seq limit p_most),
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

-- Gives what runs of a group places: it began before the group had limits. From the commit of these on no claim takes any of it, and
-- until this has been done nothing is admitted; so nobody waits for this but the gate. Reads all that is ready. False: some of it was
-- locked by others all the time, so that it is to be tried again.
create function crossover.count_in(p_grp text) returns boolean
language plpgsql set enable_seqscan = on as $$
declare
    v_ranks smallint[];
    v_vts   bigint[];
    v_ids   uuid[];
begin
    -- In one order, as heartbeats and ends do.
    with mine as materialized (
        select r.id from crossover.running r where r.grp = p_grp and r.gated_for is null order by r.id for update of r)
    update crossover.running r set gated_for = p.account from mine m join crossover.pins p on p.id = m.id
    where r.id = m.id and r.gated_for is null;
    select array_agg(r.rank), array_agg(r.vt), array_agg(r.id) into v_ranks, v_vts, v_ids
    from crossover.tasks_ready r where r.grp = p_grp and r.worker is not null and not r.gated;
    -- Whoever has a row just now has it for a moment.
    for look in 1..10 loop
        with mine as materialized (
            select r.rank, r.vt, r.id from unnest(v_ranks, v_vts, v_ids) as k (rank, vt, id)
            join crossover.tasks_ready r on r.rank = k.rank and r.vt = k.vt and r.id = k.id
            where r.worker is not null and not r.gated for update of r skip locked)
        update crossover.tasks_ready r set gated = true from mine m where r.rank = m.rank and r.vt = m.vt and r.id = m.id;
        perform from unnest(v_ranks, v_vts, v_ids) as k (rank, vt, id)
        join crossover.tasks_ready r on r.rank = k.rank and r.vt = k.vt and r.id = k.id
        where r.worker is not null and not r.gated;
        if not found then
            update crossover.groups g set counted = true where g.grp = p_grp;
            return true;
        end if;
        perform pg_sleep(0.01);
    end loop;
    return false;
end $$;

-- Takes what was admitted and not claimed yet back to the gate.
create function crossover.take_back(p_grp text) returns void
language plpgsql as $$
begin
    with back as (delete from crossover.ready r where r.grp = p_grp and r.gated_for is not null returning r.*)
    insert into crossover.gate (grp, task, rank, ord, id, due_at, attempt, execute, account)
    select b.grp, false, b.rank, b.seq, b.id, b.due_at, b.attempt, b.execute, b.gated_for from back b;
    with back as (
        delete from crossover.tasks_ready r
        where r.grp = p_grp and r.gated and r.worker is null and r.wish is null returning r.*)
    insert into crossover.gate (grp, task, rank, ord, id, due_at, created_at, attempt, execute, account, kind)
    select b.grp, true, b.rank, b.vt, b.id, b.due_at, b.created_at, b.attempt, true, b.account, b.kind from back b;
end $$;

-- Whom a pass admits of a group, at most p_free: by rank, and of equals the two kinds in turn. One in twenty is of the lowest
-- priority that waits, so that it does not wait for ever.
create function crossover.next_at_gate(p_grp text, p_free integer) returns uuid[]
language plpgsql as $$
declare
    v_low  integer := floor(p_free / 20.0 + random());
    v_task boolean;
    v_rank smallint;
    v_ids  uuid[]  := '{}';
begin
    if v_low > 0 then
        select k.task, k.rank into v_task, v_rank from (
            (select g.task, g.rank from crossover.gate g where g.grp = p_grp and g.task order by g.rank desc limit 1)
            union all
            (select g.task, g.rank from crossover.gate g where g.grp = p_grp and not g.task order by g.rank desc limit 1)) k
        order by k.rank desc, random() limit 1;
        v_ids := array(
            select g.id from crossover.gate g where g.grp = p_grp and g.task = v_task and g.rank = v_rank
            order by g.ord, g.id limit v_low);
    end if;
    return v_ids || array(
        select i.id from (
            select w.id, w.rank, row_number() over (partition by w.task, w.rank order by w.ord, w.id) as n from (
                (select g.id, g.task, g.rank, g.ord from crossover.gate g where g.grp = p_grp and not g.task
                 order by g.rank, g.ord, g.id limit p_free)
                union all
                (select g.id, g.task, g.rank, g.ord from crossover.gate g where g.grp = p_grp and g.task
                 order by g.rank, g.ord, g.id limit p_free)) w
            where w.id <> all (v_ids)) i
        order by i.rank, i.n, random() limit p_free - cardinality(v_ids));
end $$;

-- The same where accounts have limits of their own: of equals the accounts in turn. Looks at p_accounts accounts, and goes on
-- there the next time.
create function crossover.next_of_accounts(p_group crossover.groups, p_free integer, p_accounts integer, p_now timestamptz) returns uuid[]
language plpgsql as $$
declare
    v_last text;
    v_many integer;
    v_ids  uuid[];
begin
    with recursive waiting (account, n) as (
        (select g.account, 1 from crossover.gate g
         where g.grp = p_group.grp and g.account > p_group.turn order by g.account limit 1)
        union all
        select (select g.account from crossover.gate g
                where g.grp = p_group.grp and g.account > w.account order by g.account limit 1), w.n + 1
        from waiting w where w.account is not null and w.n < p_accounts),
    free as materialized (
        select w.account, case
                when p_group.heed_retry_after and exists (select from crossover.group_holds o
                    where o.grp = p_group.grp and o.account = w.account and o.until > p_now) then 0
                -- What is no limit is null, which `least` leaves out.
                else least(p_free, p_group.max_per_account - coalesce(h.held, 0), case when p_group.account_rate is not null then least(
                    floor(crossover.tokens_now(p_group.grp, w.account, p_group.account_rate,
                        crossover.burst_of(p_group.account_rate, p_group.account_burst), p_now)),
                    -- As of the group: what was admitted and waits for a worker starts later, and all at once.
                    crossover.burst_of(p_group.account_rate, p_group.account_burst)
                        - crossover.unclaimed_of(p_group.grp, w.account)) end)::integer end as places
        from waiting w left join crossover.places_of(p_group.grp) h on h.account = w.account where w.account is not null),
    -- Of each account so many that all of them are enough, and that not all of them have to be read.
    shares as materialized (
        select f.account, least(f.places, greatest(1, 4 * p_free / count(*) over ())) as places from free f where f.places > 0),
    heads as (
        select x.id, x.rank, x.n from shares f cross join lateral (
            select i.id, i.rank, row_number() over (order by i.rank, i.n, random()) as n from (
                select w.id, w.rank, row_number() over (partition by w.task, w.rank order by w.ord, w.id) as n from (
                    (select g.id, g.task, g.rank, g.ord from crossover.gate g
                     where g.grp = p_group.grp and g.account = f.account and not g.task
                     order by g.rank, g.ord, g.id limit f.places)
                    union all
                    (select g.id, g.task, g.rank, g.ord from crossover.gate g
                     where g.grp = p_group.grp and g.account = f.account and g.task
                     order by g.rank, g.ord, g.id limit f.places)) w) i
            order by i.rank, i.n, random() limit f.places) x)
    select (select max(f.account) from free f), (select count(*) from free f),
        array(select h.id from heads h order by h.rank, h.n, random() limit p_free)
    into v_last, v_many, v_ids;
    -- Beyond the last one it begins anew.
    v_last := case when v_many < p_accounts then '' else v_last end;
    update crossover.groups g set turn = v_last where g.grp = p_group.grp and g.turn <> v_last;
    return v_ids;
end $$;

-- Takes what has started out of what a rate lets start.
create function crossover.spend(p_grp text, p_account text, p_tokens double precision, p_now timestamptz) returns void
language sql as $$
    insert into crossover.group_tokens as t (grp, account, tokens, at) values (p_grp, p_account, p_tokens, p_now)
    on conflict (grp, account) do update set tokens = excluded.tokens, at = excluded.at
$$;

-- Lets these in, with places or, where their group has no limits any more, without. Whose they are.
create function crossover.let_in(p_ids uuid[], p_places boolean) returns text[]
language plpgsql as $$
declare
    v_accounts text[];
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
    select coalesce(array_agg(g.account), '{}') into v_accounts from gone g;
    return v_accounts;
end $$;

-- Where a group, or an account in it, has no place left: rehearsals whose real run was not seen to begin give theirs to executions
-- that wait, at most p_most, the oldest first. Otherwise work whose other side is away would hold up what it has nothing to do
-- with. They go on without a place. Whose executions were let in.
create function crossover.give_way(p_group crossover.groups, p_most integer, p_now timestamptz) returns text[]
language plpgsql as $$
declare
    v_held   bigint;
    v_of     jsonb;
    v_one    record;
    v_back   bigint;
    v_giver  uuid;
    v_givers jsonb;
    v_gives  uuid[] := '{}';
    v_takes  uuid[] := '{}';
begin
    if not exists (select from crossover.gate g where g.grp = p_group.grp and g.task)
        and not exists (select from crossover.gate g where g.grp = p_group.grp and g.execute and not g.task) then
        return '{}';
    end if;
    v_held := crossover.places_held(p_group.grp);
    -- What nobody has claimed goes back to the gate: where all workers are full of rehearsals, nobody will claim it, and its places would
    -- be held for nothing.
    with givers as materialized (
        select r.rank, r.seq from crossover.ready r
        where r.grp = p_group.grp and r.gated_for is not null and not r.execute
            and (v_held >= p_group.max_running or exists (
                select from crossover.gate g where g.grp = r.grp and g.account = r.gated_for and (g.task or g.execute)))
        order by r.rank desc, r.seq desc limit p_most for update of r skip locked),
    back as (delete from crossover.ready r using givers g where r.rank = g.rank and r.seq = g.seq returning r.*)
    insert into crossover.gate (grp, task, rank, ord, id, due_at, attempt, execute, account)
    select b.grp, false, b.rank, b.seq, b.id, b.due_at, b.attempt, b.execute, b.gated_for from back b;
    get diagnostics v_back = row_count;
    -- Whoever has a row just now ends it or prolongs its lease.
    with givers as materialized (
        select r.id, r.gated_for, r.started_at from crossover.running r
        where r.grp = p_group.grp and r.gated_for is not null and not r.execute
            and not exists (select from crossover.sightings s
                where s.id = r.id and s.side = 'temporal' and s.what = 'dequeued' and not s.rehearsal and s.attempt >= r.attempt
                    and s.seen_at > r.due_at - interval '1 day')
        order by r.started_at, r.id limit p_most for update of r skip locked)
    select jsonb_agg(jsonb_build_object('id', g.id, 'account', g.gated_for) order by g.started_at, g.id) into v_givers from givers g;
    if v_givers is null and v_back = 0 then return '{}'; end if;
    v_held := crossover.places_held(p_group.grp);
    select coalesce(jsonb_object_agg(o.account, o.held), '{}') into v_of from crossover.places_of(p_group.grp) o;
    for v_one in
        select w.id, w.account from (
            (select g.id, g.account, g.rank, g.ord from crossover.gate g where g.grp = p_group.grp and g.task
             order by g.rank, g.ord, g.id limit p_most)
            union all
            (select g.id, g.account, g.rank, g.ord from crossover.gate g where g.grp = p_group.grp and g.execute and not g.task
             order by g.rank, g.ord, g.id limit p_most)) w
        where not (p_group.heed_retry_after and exists (select from crossover.group_holds o
                where o.grp = p_group.grp and o.account = w.account and o.until > p_now))
            and (p_group.account_rate is null or crossover.tokens_now(p_group.grp, w.account, p_group.account_rate,
                crossover.burst_of(p_group.account_rate, p_group.account_burst), p_now) >= 1
                and crossover.burst_of(p_group.account_rate, p_group.account_burst) > crossover.unclaimed_of(p_group.grp, w.account))
        order by w.rank, w.ord, w.id
    loop
        exit when cardinality(v_takes) >= p_most;
        -- A token that is there is one execution's.
        continue when p_group.account_rate is not null
            and exists (select from crossover.gate g where g.id = any (v_takes) and g.account = v_one.account);
        v_giver := null;
        if coalesce((v_of ->> v_one.account)::bigint, 0) >= p_group.max_per_account then
            select (g ->> 'id')::uuid into v_giver from jsonb_array_elements(v_givers) g
            where g ->> 'account' = v_one.account and (g ->> 'id')::uuid <> all (v_gives) limit 1;
            continue when v_giver is null;
        elsif v_held >= p_group.max_running then
            select (g ->> 'id')::uuid into v_giver from jsonb_array_elements(v_givers) g
            where (g ->> 'id')::uuid <> all (v_gives) limit 1;
            exit when v_giver is null;
        end if;
        -- One that is given up above a limit that was lowered makes no room yet.
        if v_giver is not null then
            v_gives := v_gives || v_giver;
            v_held := v_held - 1;
            select jsonb_set(v_of, array[g ->> 'account'], to_jsonb(coalesce((v_of ->> (g ->> 'account'))::bigint, 1) - 1)) into v_of
            from jsonb_array_elements(v_givers) g where (g ->> 'id')::uuid = v_giver;
        end if;
        continue when v_held >= p_group.max_running or coalesce((v_of ->> v_one.account)::bigint, 0) >= p_group.max_per_account;
        v_takes := v_takes || v_one.id;
        v_held := v_held + 1;
        v_of := jsonb_set(v_of, array[v_one.account], to_jsonb(coalesce((v_of ->> v_one.account)::bigint, 0) + 1));
    end loop;
    update crossover.running r set gated_for = null where r.id = any (v_gives) and not r.execute;
    return crossover.let_in(v_takes, true);
end $$;

-- Admits what there is room for in a group, at most p_most: how many, how many of these in the place of a rehearsal, and in how many
-- milliseconds a rate lets more in.
create function crossover.admit_group(p_grp text, p_most integer, out admitted bigint, out gave_way bigint, out wait_ms double precision)
language plpgsql as $$
declare
    v_now      timestamptz := clock_timestamp();
    v_group    crossover.groups;
    v_most     bigint := p_most;
    v_room     bigint;
    v_tokens   double precision;
    v_burst    integer;
    v_accounts text[] := '{}';
    v_more     text[] := '{}';
begin
    admitted := 0; gave_way := 0;
    select * into v_group from crossover.groups g where g.grp = p_grp and g.gated;
    if not found then
        admitted := cardinality(crossover.let_in(crossover.next_at_gate(p_grp, p_most), false));
        return;
    end if;
    if v_group.paused_since is not null or not v_group.counted then return; end if;
    if v_group.rate is not null then
        -- A clock that was put back must not stop the rate until it is where it was.
        update crossover.group_tokens t set at = v_now where t.grp = p_grp and t.account = '' and t.at > v_now;
        v_burst := crossover.burst_of(v_group.rate, v_group.burst);
        v_tokens := crossover.tokens_now(p_grp, '', v_group.rate, v_burst, v_now);
        -- What is admitted and waits for a worker starts later, and all at once: no more than a burst of it.
        v_most := least(v_most, floor(v_tokens)::bigint, v_burst - crossover.places_unclaimed(p_grp));
    end if;
    v_room := v_most;
    if v_most > 0 and v_group.max_running is not null then
        v_room := least(v_most, v_group.max_running - crossover.places_held(p_grp));
    end if;
    if v_room > 0 then
        v_accounts := crossover.let_in(case
            when v_group.max_per_account is not null or v_group.account_rate is not null
                or v_group.heed_retry_after and exists (select from crossover.group_holds o where o.grp = p_grp and o.until > v_now)
            then crossover.next_of_accounts(v_group, v_room::integer, 500, v_now)
            else crossover.next_at_gate(p_grp, v_room::integer) end, true);
    end if;
    v_most := v_most - cardinality(v_accounts);
    if v_most > 0 and (v_group.max_running is not null or v_group.max_per_account is not null) then
        v_more := crossover.give_way(v_group, least(v_most, 100)::integer, v_now);
        gave_way := cardinality(v_more);
        v_accounts := v_accounts || v_more;
    end if;
    admitted := cardinality(v_accounts);
    if v_group.rate is not null then
        if admitted > 0 then perform crossover.spend(p_grp, '', v_tokens - admitted, v_now); end if;
        if v_tokens - admitted < 1 then wait_ms := (1 - v_tokens + admitted) * 1000 / v_group.rate; end if;
    end if;
    if v_group.account_rate is not null and admitted > 0 then
        v_burst := crossover.burst_of(v_group.account_rate, v_group.account_burst);
        perform crossover.spend(p_grp, a.account,
            crossover.tokens_now(p_grp, a.account, v_group.account_rate, v_burst, v_now) - a.started, v_now)
        from (select account, count(*) as started from unnest(v_accounts) as u (account) group by account) a;
        wait_ms := least(wait_ms, 1000 / v_group.account_rate);
    end if;
end $$;

-- Forgets what rates and holds no longer need, and what a clock that was put back makes them need too long. Reads all of them.
create function crossover.forget_spent(p_limit integer) returns void
language plpgsql as $$
declare
    v_now timestamptz := clock_timestamp();
begin
    delete from crossover.group_tokens t using (
        select t.grp, t.account from crossover.group_tokens t left join crossover.groups g on g.grp = t.grp
        where case when t.account = '' then g.rate is null or t.tokens + extract(epoch from v_now - t.at) * g.rate
                >= crossover.burst_of(g.rate, g.burst)
            else g.account_rate is null or t.tokens + extract(epoch from v_now - t.at) * g.account_rate
                >= crossover.burst_of(g.account_rate, g.account_burst) end
        limit p_limit) old
    where t.grp = old.grp and t.account = old.account;
    update crossover.group_tokens t set at = v_now where t.at > v_now;
    delete from crossover.group_holds o using (
        select o.grp, o.account from crossover.group_holds o
        where o.until < v_now or o.until > v_now + interval '25 hours' limit p_limit for update skip locked) old
    where o.grp = old.grp and o.account = old.account;
end $$;

-- A pass: admits in every group that waits, from the one after p_from on; after 200 ms it ends, and `go_on` is for the next one.
-- `busy`: another one is at it. `gates`: some group has limits, or something is still at the gate. `wait_ms`: by a rate, more may
-- be let in after so long. p_look: look for strays, too. p_tidy: forget what rates and holds no longer need.
create function crossover.admit(
    p_most integer, p_look boolean, p_tidy boolean, p_from text,
    out busy boolean, out gates boolean, out admitted bigint, out strays bigint, out gave_way bigint, out wait_ms double precision,
    out go_on text)
language plpgsql set enable_seqscan = off set enable_bitmapscan = off set jit = off as $$
declare
    v_began  timestamptz := clock_timestamp();
    v_limits boolean     := exists (select from crossover.groups g where g.gated);
    v_grp    text;
    v_one    record;
begin
    busy := false; gates := v_limits; admitted := 0; strays := 0; gave_way := 0;
    if not gates then
        gates := exists (select from crossover.gate);
        if not gates then return; end if;
    end if;
    if not pg_try_advisory_xact_lock(crossover.gate_lock()) then busy := true; return; end if;
    if v_limits and p_look then strays := crossover.take_strays(p_most); end if;
    if p_tidy then perform crossover.forget_spent(p_most); end if;
    perform crossover.count_in(g.grp) from crossover.groups g where g.gated and not g.counted;
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

-- Before p_worker reports the ends of attempts that were told to come back later: where their group heeds it, the rest of their
-- account is held back. What it does not hold any more says nothing. p_ranks and p_vts: of tasks. How many accounts that are.
create function crossover.heed_retry_after(
    p_worker uuid, p_ids uuid[], p_attempts integer[], p_ranks smallint[], p_vts bigint[], p_ms bigint[]) returns bigint
language plpgsql as $$
declare
    v_held bigint;
begin
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
    on conflict (grp, account) do update set until = greatest(o.until, excluded.until);
    get diagnostics v_held = row_count;
    return v_held;
end $$;

-- What waits in groups that have a cap: at the gate, and admitted and not begun. Counts no further than the cap.
create function crossover.capped_groups() returns table (grp text, max_waiting integer, waiting bigint)
language sql stable set enable_seqscan = off set jit = off as $$
    select g.grp, g.max_waiting, w.waiting + a.copies + b.tasks from crossover.groups g
    cross join lateral (select count(*) as waiting from (select from crossover.gate w where w.grp = g.grp limit g.max_waiting) w) w
    cross join lateral (select count(*) as copies from (
        select from crossover.ready r where r.grp = g.grp and r.gated_for is not null limit g.max_waiting) r) a
    cross join lateral (select count(*) as tasks from (
        select from crossover.tasks_ready r where r.grp = g.grp and r.gated and r.worker is null limit g.max_waiting) r) b
    where g.max_waiting is not null
$$;

-- Changes ----------------------------------------------------------------------------------------------------

-- What follows from a change of a group, in its transaction and under gate_lock: what was admitted and not begun is admitted
-- anew by the new limits, and what runs is counted in by the next pass, before it admits more.
create function crossover.group_changed(p_grp text, p_was_gated boolean) returns void
language plpgsql set lock_timeout = '2s' as $$
begin
    delete from crossover.group_holds o
    where o.grp = p_grp and not exists (select from crossover.groups g where g.grp = p_grp and g.heed_retry_after);
    if not crossover.is_gated(p_grp) then return; end if;
    if not p_was_gated then
        update crossover.groups g set counted = false where g.grp = p_grp;
        -- A claim that knows nothing of the limits ends before this has the lock, and one that comes later knows of them.
        perform pg_advisory_xact_lock(crossover.claims_lock());
    end if;
    perform crossover.take_back(p_grp);
end $$;

-- The faults of a change of limits.
create function crossover.group_faults(p_grp text, p_limits jsonb) returns setof text
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

-- Sets limits of a group: those that are named, null for none; the others stay. Commit it soon: until then nothing is admitted, and
-- after a group's first limit nothing is claimed. In force in every worker when it has committed. Raises 22023 with every fault.
create function crossover.set_group(grp text, limits jsonb, who text default session_user) returns crossover.groups
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

-- Lets nothing of a group start until it is resumed. What runs goes on.
create function crossover.pause_group(grp text, reason text, who text default session_user) returns crossover.groups
language plpgsql as $$
#variable_conflict use_column
declare
    v_fault text := coalesce(crossover.name_fault('grp', pause_group.grp, 100), case when pause_group.grp is null then 'grp: is missing' end);
    v_was   boolean;
    v_group crossover.groups;
begin
    if v_fault is not null then
        raise exception using errcode = '22023', message = 'not paused: ' || v_fault;
    end if;
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

-- Lets it go on, under the limits that it has. Null: there is no such group.
create function crossover.resume_group(grp text, who text default session_user) returns crossover.groups
language plpgsql as $$
#variable_conflict use_column
declare
    v_group crossover.groups;
begin
    perform pg_advisory_xact_lock(crossover.gate_lock());
    update crossover.groups g set paused_since = null, paused_reason = null, changed_at = clock_timestamp(), changed_by = who
    where g.grp = resume_group.grp returning * into v_group;
    return v_group;
end $$;

-- Takes all limits and a pause away. False: it had none.
create function crossover.unset_group(grp text) returns boolean
language plpgsql as $$
#variable_conflict use_column
begin
    perform pg_advisory_xact_lock(crossover.gate_lock());
    delete from crossover.group_holds o where o.grp = unset_group.grp;
    delete from crossover.groups g where g.grp = unset_group.grp;
    return found;
end $$;

-- Says how much an account counts among those that wait; null: as much as any other. Raises 22023 with the faults.
create function crossover.set_weight(account text, weight double precision, who text default session_user) returns void
language plpgsql as $$
#variable_conflict use_column
declare
    v_faults text[] := array_remove(array[
        coalesce(crossover.name_fault('account', set_weight.account, 200), case when set_weight.account is null then 'account: is missing' end),
        -- Beyond these, an account would be so far ahead or behind in virtual time that nothing is left of the others' shares.
        case when not (set_weight.weight between 0.001 and 1000)
            then format('weight: must be from 0.001 to 1000, is %s', set_weight.weight) end], null);
begin
    if v_faults <> '{}' then
        raise exception using errcode = '22023', message = 'not set: ' || array_to_string(v_faults, '; ');
    end if;
    if set_weight.weight is null then
        delete from crossover.account_weights w where w.account = set_weight.account;
        return;
    end if;
    insert into crossover.account_weights as w (account, weight, changed_by) values (set_weight.account, set_weight.weight, who)
    on conflict (account) do update set weight = excluded.weight, changed_at = clock_timestamp(), changed_by = excluded.changed_by;
end $$;

-- Ways to ready ----------------------------------------------------------------------------------------------

-- Puts copies where they belong; the body is that of the first migration, and there is the gate.
create or replace function crossover.place(p_id uuid, p_due_at timestamptz, p_attempt integer, p_priority smallint, p_execute boolean, p_grp text)
returns void language plpgsql as $$
begin
    if p_due_at > clock_timestamp() then
        insert into crossover.scheduled (id, due_at, attempt, rank, execute, grp)
        values (p_id, p_due_at, p_attempt, -p_priority, p_execute, p_grp);
    elsif exists (select from crossover.groups g where g.grp = p_grp and g.gated) then
        perform crossover.place_at_gate(p_id, p_due_at, p_attempt, (-p_priority)::smallint, p_execute, p_grp);
    else
        insert into crossover.ready (id, due_at, attempt, rank, execute, grp)
        values (p_id, p_due_at, p_attempt, -p_priority, p_execute, p_grp);
    end if;
end $$;

-- Moves what is due from scheduled to ready, oldest first, or to the gate. Returns how many.
create or replace function crossover.promote_due(p_limit integer) returns bigint
language plpgsql
-- By the index, whatever the planner thinks of how many are due.
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_gates boolean := exists (select from crossover.groups g where g.gated);
    v_moved bigint;
begin
    with due as materialized (
        select id from crossover.scheduled where due_at <= statement_timestamp() order by due_at limit p_limit for update skip locked),
    moved as (delete from crossover.scheduled s using due where s.id = due.id
        returning s.*, case when v_gates then exists (select from crossover.groups g where g.grp = s.grp and g.gated) else false end as gated),
    placed as (
        insert into crossover.ready (id, due_at, attempt, rank, execute, grp)
        select id, due_at, attempt, rank, execute, grp from moved where not gated order by due_at),
    stopped as (
        insert into crossover.gate (grp, task, rank, ord, id, due_at, attempt, execute, account)
        select m.grp, false, m.rank, nextval('crossover.ready_seq_seq'), m.id, m.due_at, m.attempt, m.execute, p.account
        from (select * from moved where gated order by due_at) m join crossover.pins p on p.id = m.id)
    select count(*) into v_moved from moved;
    return v_moved;
end $$;

create or replace function crossover.enqueue_tasks(
    p_ids uuid[], p_created_ats timestamptz[], p_run_ats timestamptz[], p_vts bigint[], p_ranks smallint[], p_accounts text[],
    p_kinds text[], p_grps text[], p_flag_revisions text[], p_policies text[], p_payloads text[])
returns setof uuid language plpgsql as $$
declare
    v_now   timestamptz := clock_timestamp();
    v_gates boolean     := exists (select from crossover.groups g where g.gated);
begin
    -- In plpgsql because that keeps the plan.
    return query with given as materialized (
        select g.id, g.created_at, coalesce(g.run_at, v_now) as run_at, g.vt, g.rank, g.account, g.kind, g.grp,
            g.flag_revision, g.policy::json as policy, g.payload::json as payload
        from unnest(p_ids, p_created_ats, p_run_ats, p_vts, p_ranks, p_accounts, p_kinds, p_grps, p_flag_revisions, p_policies, p_payloads)
            as g (id, created_at, run_at, vt, rank, account, kind, grp, flag_revision, policy, payload)
        where exists (select from crossover.accounts a where a.account = g.account and a.state = 'armed')),
    taken as (
        insert into crossover.tasks (id, created_at, run_at, vt, rank, account, kind, grp, flag_revision, policy, payload)
        select id, created_at, run_at, vt, rank, account, kind, grp, flag_revision, policy, payload from given
        on conflict do nothing
        returning id, created_at, run_at, vt, rank, account, kind, grp,
            case when v_gates then exists (select from crossover.groups g where g.grp = tasks.grp and g.gated) else false end as gated),
    ready as (
        insert into crossover.tasks_ready (rank, vt, id, created_at, due_at, attempt, account, kind, grp)
        select rank, vt, id, created_at, run_at, 1, account, kind, grp from taken where run_at <= v_now and not gated),
    stopped as (
        insert into crossover.gate (grp, task, rank, ord, id, due_at, created_at, attempt, execute, account, kind)
        select grp, true, rank, vt, id, run_at, created_at, 1, true, account, kind from taken where run_at <= v_now and gated),
    later as (
        insert into crossover.tasks_scheduled (id, due_at, created_at, vt, rank, attempt, account, kind, grp)
        select id, run_at, created_at, vt, rank, 1, account, kind, grp from taken where run_at > v_now)
    select t.id from taken t;
end $$;

create or replace function crossover.promote_due_tasks(p_limit integer) returns bigint
language plpgsql
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_gates boolean := exists (select from crossover.groups g where g.gated);
    v_moved bigint;
begin
    with due as materialized (
        select id from crossover.tasks_scheduled where due_at <= statement_timestamp() order by due_at limit p_limit for update skip locked),
    moved as (delete from crossover.tasks_scheduled s using due where s.id = due.id
        returning s.*, case when v_gates then exists (select from crossover.groups g where g.grp = s.grp and g.gated) else false end as gated),
    placed as (
        insert into crossover.tasks_ready (rank, vt, id, created_at, due_at, attempt, account, kind, grp)
        select rank, vt, id, created_at, due_at, attempt, account, kind, grp from moved where not gated
        on conflict do nothing),
    stopped as (
        insert into crossover.gate (grp, task, rank, ord, id, due_at, created_at, attempt, execute, account, kind)
        select grp, true, rank, vt, id, due_at, created_at, attempt, true, account, kind from moved where gated
        on conflict do nothing)
    select count(*) into v_moved from moved;
    return v_moved;
end $$;

-- The head of what is ready, for claim_tasks where some group has limits: what is a stray goes to the gate instead. p_low rows are of
-- rank p_rank.
create function crossover.claim_tasks_by_limits(p_worker uuid, p_limit integer, p_low integer, p_rank smallint)
returns table (rank smallint, vt bigint, id uuid, attempt integer, due_at timestamptz, started_at timestamptz, run_at timestamptz,
    account text, kind text, grp text, policy text, payload text, wish text)
language plpgsql
as $$
#variable_conflict use_column
begin
    return query with head as materialized (
        select r.rank, r.vt, r.id, r.grp, r.gated or r.wish is not null as gated from crossover.tasks_ready r where r.worker is null
        order by r.rank, r.vt, r.id limit p_limit for no key update skip locked),
    low as materialized (
        select r.rank, r.vt, r.id, r.grp, r.gated or r.wish is not null as gated from crossover.tasks_ready r
        where r.worker is null and r.rank = p_rank and p_rank > (select max(h.rank) from head h)
        order by r.rank, r.vt, r.id limit p_low for no key update skip locked),
    picked as materialized (
        select p.rank, p.vt, p.id,
            not p.gated and exists (select from crossover.groups g where g.grp = p.grp and g.gated) as stray
        from (select * from low union all (select * from head limit p_limit - (select count(*) from low))) p),
    strays as (
        delete from crossover.tasks_ready r using picked p
        where p.stray and r.rank = p.rank and r.vt = p.vt and r.id = p.id returning r.*),
    stopped as (
        insert into crossover.gate (grp, task, rank, ord, id, due_at, created_at, attempt, execute, account, kind)
        select s.grp, true, s.rank, s.vt, s.id, s.due_at, s.created_at, s.attempt, true, s.account, s.kind from strays s),
    taken as (
        update crossover.tasks_ready r set worker = p_worker, started_at = clock_timestamp() from picked p
        where not p.stray and r.rank = p.rank and r.vt = p.vt and r.id = p.id
        returning r.rank, r.vt, r.id, r.created_at, r.attempt, r.due_at, r.started_at, r.account, r.kind, r.grp, r.wish)
    select t.rank, t.vt, t.id, t.attempt, t.due_at, t.started_at, k.run_at, t.account, t.kind, t.grp, k.policy::text, k.payload::text, t.wish
    from taken t left join crossover.tasks k on k.id = t.id and k.created_at = t.created_at;
end $$;

-- Takes the head of what is ready for a worker that has a lease; the body is that of the tasks' migration. p_low of it are of the
-- lowest priority that waits, where the head has none of it. No key changes, so whoever only keeps a row from going is passed.
create function crossover.claim_tasks(p_worker uuid, p_limit integer, p_low integer)
returns table (rank smallint, vt bigint, id uuid, attempt integer, due_at timestamptz, started_at timestamptz, run_at timestamptz,
    account text, kind text, grp text, policy text, payload text, wish text)
language plpgsql
-- The plan is kept while the table grows from nothing to millions.
set enable_seqscan = off set enable_bitmapscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
#variable_conflict use_column
declare
    v_low   integer := 0;
    v_first smallint;
    v_last  smallint;
begin
    perform from crossover.workers w where w.worker = p_worker for key share;
    if not found then return; end if;
    perform pg_advisory_xact_lock_shared(crossover.claims_lock());
    if p_low > 0 then
        select r.rank into v_first from crossover.tasks_ready r where r.worker is null order by r.rank, r.vt, r.id limit 1;
        select r.rank into v_last from crossover.tasks_ready r where r.worker is null
        order by r.rank desc, r.vt desc, r.id desc limit 1;
        -- Mostly all have one priority, and a plain claim does.
        v_low := case when v_first < v_last then least(p_low, p_limit) else 0 end;
    end if;
    if exists (select from crossover.groups g where g.gated) then
        return query select * from crossover.claim_tasks_by_limits(p_worker, p_limit, v_low, v_last);
        return;
    end if;
    if v_low > 0 then
        return query with head as materialized (
            select r.rank, r.vt, r.id from crossover.tasks_ready r where r.worker is null
            order by r.rank, r.vt, r.id limit p_limit for no key update skip locked),
        low as materialized (
            select r.rank, r.vt, r.id from crossover.tasks_ready r
            where r.worker is null and r.rank = v_last and v_last > (select max(h.rank) from head h)
            order by r.rank, r.vt, r.id limit v_low for no key update skip locked),
        taken as (
            update crossover.tasks_ready r set worker = p_worker, started_at = clock_timestamp()
            from (select * from low union all (select * from head limit p_limit - (select count(*) from low))) p
            where r.rank = p.rank and r.vt = p.vt and r.id = p.id
            returning r.rank, r.vt, r.id, r.created_at, r.attempt, r.due_at, r.started_at, r.account, r.kind, r.grp, r.wish)
        select t.rank, t.vt, t.id, t.attempt, t.due_at, t.started_at, k.run_at, t.account, t.kind, t.grp, k.policy::text,
            k.payload::text, t.wish
        from taken t left join crossover.tasks k on k.id = t.id and k.created_at = t.created_at;
        return;
    end if;
    return query with head as materialized (
        select r.rank, r.vt, r.id from crossover.tasks_ready r where r.worker is null
        order by r.rank, r.vt, r.id limit p_limit for no key update skip locked),
    taken as (
        update crossover.tasks_ready r set worker = p_worker, started_at = clock_timestamp() from head h
        where r.rank = h.rank and r.vt = h.vt and r.id = h.id
        returning r.rank, r.vt, r.id, r.created_at, r.attempt, r.due_at, r.started_at, r.account, r.kind, r.grp, r.wish)
    select t.rank, t.vt, t.id, t.attempt, t.due_at, t.started_at, k.run_at, t.account, t.kind, t.grp, k.policy::text, k.payload::text, t.wish
    from taken t left join crossover.tasks k on k.id = t.id and k.created_at = t.created_at;
end $$;

-- For processes of the version before.
create or replace function crossover.claim_tasks(p_worker uuid, p_limit integer)
returns table (rank smallint, vt bigint, id uuid, attempt integer, due_at timestamptz, started_at timestamptz, run_at timestamptz,
    account text, kind text, grp text, policy text, payload text, wish text)
language sql as $$ select * from crossover.claim_tasks(p_worker, p_limit, 0) $$;

-- Puts back, as if it had not been claimed, what a worker holds beside p_held; the body is that of the tasks' migration, and what
-- has a place gives it back. What somebody asked to cancel keeps the wish where it is: it ends with the next claim.
create or replace function crossover.release_tasks(p_worker uuid, p_held uuid[]) returns bigint
language plpgsql as $$
declare
    v_rows    bigint;
    v_stopped bigint;
begin
    perform from crossover.workers w where w.worker = p_worker for update;
    with back as (
        delete from crossover.tasks_ready r
        where r.worker = p_worker and r.id <> all (p_held) and r.gated and r.wish is null returning r.*)
    insert into crossover.gate (grp, task, rank, ord, id, due_at, created_at, attempt, execute, account, kind)
    select b.grp, true, b.rank, b.vt, b.id, b.due_at, b.created_at, b.attempt, true, b.account, b.kind from back b;
    get diagnostics v_stopped = row_count;
    update crossover.tasks_ready r set worker = null, started_at = null
    where r.worker = p_worker and r.id <> all (p_held);
    get diagnostics v_rows = row_count;
    return v_rows + v_stopped;
end $$;

-- Makes the copy of an execution that was never claimed a rehearsal, where it is; the body is that of the handover's migration, and
-- it may be at the gate.
create or replace function crossover.to_rehearsal(p_id uuid, p_behind boolean) returns text
language plpgsql as $$
declare
    v_waits crossover.scheduled;
    v_ready crossover.ready;
    v_gate  crossover.gate;
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
        insert into crossover.ready (seq, id, due_at, attempt, rank, execute, grp, gated_for) overriding system value
        values (v_ready.seq, p_id, v_ready.due_at, 1, v_ready.rank, false, v_ready.grp, v_ready.gated_for);
        return 'moved';
    end if;
    select * into v_gate from crossover.gate g where g.id = p_id for update skip locked;
    if found then
        if v_gate.attempt > 1 then return 'claimed'; end if;
        delete from crossover.gate g where g.id = p_id;
        insert into crossover.gate (grp, task, rank, ord, id, due_at, attempt, execute, account)
        values (v_gate.grp, false, v_gate.rank, v_gate.ord, p_id, v_gate.due_at, 1, false, v_gate.account);
        return 'moved';
    end if;
    if exists (select from crossover.running r where r.id = p_id) then return 'claimed'; end if;
    return case when p_behind then 'moved' else 'busy' end;
end $$;

-- Ways out ---------------------------------------------------------------------------------------------------

-- Takes away Postgres' rehearsals, not begun, of what was cancelled on Temporal. One that is held mirrors the end.
create or replace function crossover.forget_rehearsals(p_ids uuid[]) returns void
language plpgsql as $$
begin
    delete from crossover.scheduled where id = any (p_ids) and not execute;
    delete from crossover.gate where id = any (p_ids) and not execute;
    delete from crossover.ready where id = any (p_ids) and not execute;
    -- What is ready may be taken back meanwhile.
    delete from crossover.gate where id = any (p_ids) and not execute;
end $$;

-- Holds a pin, for a person to look; the body is that of an earlier migration, and it may be at the gate.
create or replace function crossover.hold(p_id uuid, p_epoch integer, p_conflict text) returns void
language plpgsql as $$
begin
    update crossover.pins set conflict = coalesce(conflict, p_conflict) where id = p_id and epoch = p_epoch;
    if not found then return; end if;
    -- In the order in which it moves on. What goes by is left out by a claim.
    delete from crossover.scheduled where id = p_id;
    delete from crossover.gate where id = p_id;
    delete from crossover.ready where id = p_id;
    delete from crossover.gate where id = p_id;
    delete from crossover.outbox where id = p_id;
end $$;

-- Cancels; the body is that of an earlier migration, and the gate is one of the places where it may be.
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
            delete from crossover.gate where id = p_id;
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

-- Cancels a task; the body is that of the tasks' migration, and the gate is one of the places where it may be.
create or replace function crossover.cancel_task(p_id uuid, p_created_at timestamptz, p_reason text) returns text
language plpgsql as $$
declare
    v_task    record;
    v_due     timestamptz;
    v_attempt integer;
    v_outcome text;
begin
    select t.rank, t.vt into v_task from crossover.tasks t where t.id = p_id and t.created_at = p_created_at;
    if not found then return null; end if;
    -- It may move between two looks, which see one after the other.
    for look in 1..20 loop
        with gone as (
            delete from crossover.tasks_ready r
            where r.rank = v_task.rank and r.vt = v_task.vt and r.id = p_id and r.worker is null returning r.due_at, r.attempt),
        turned_away as (delete from crossover.gate g where g.id = p_id returning g.due_at, g.attempt),
        unscheduled as (delete from crossover.tasks_scheduled s where s.id = p_id returning s.due_at, s.attempt)
        select due_at, attempt into v_due, v_attempt
        from (select * from gone union all select * from turned_away union all select * from unscheduled) g;
        if found then
            insert into crossover.attempts (id, due_at, started_at, ended_at, epoch, attempt, rehearsal, side, outcome, error)
            values (p_id, v_due, clock_timestamp(), clock_timestamp(), 1, v_attempt - 1, false, 'postgres', 'cancelled', p_reason);
            return 'cancelled';
        end if;
        -- Its end waits for this, and sees the wish, or it has gone before.
        update crossover.tasks_ready r set wish = coalesce(r.wish, p_reason)
        where r.rank = v_task.rank and r.vt = v_task.vt and r.id = p_id and r.worker is not null;
        if found then return 'asked'; end if;
        select a.outcome into v_outcome from crossover.attempts a
            -- The router's clock, which named it, may go before this one.
        where a.id = p_id and a.ended_at >= p_created_at - interval '1 hour' and a.retry_ms is null
        order by a.ended_at desc limit 1;
        if found then return case when v_outcome = 'cancelled' then 'cancelled' else 'ended' end; end if;
    end loop;
    raise exception using errcode = '40001', message = format('task %s moves all the time; try again', p_id);
end $$;

-- Whether a task of the account has not ended. Reads all of them: asked only while an account is being disarmed.
create or replace function crossover.has_tasks(p_account text) returns boolean
language sql stable as $$
    select exists (select from crossover.tasks_ready r where r.account = p_account)
        or exists (select from crossover.tasks_scheduled s where s.account = p_account)
        or exists (select from crossover.gate g where g.account = p_account and g.task)
$$;

-- What has not ended -------------------------------------------------------------------------------------------

create or replace view crossover.unended_tasks as
    select r.id, r.created_at from crossover.tasks_ready r
    union all
    select s.id, s.created_at from crossover.tasks_scheduled s
    union all
    select g.id, g.created_at from crossover.gate g where g.task;

create or replace view crossover.placed_pins as
    select id from crossover.ready union all
    select id from crossover.scheduled union all
    select id from crossover.running union all
    select id from crossover.parked union all
    select id from crossover.outbox union all
    select id from crossover.rehearsals union all
    select id from crossover.detached where closed_at is null union all
    select id from crossover.gate where not task;

-- What others see ----------------------------------------------------------------------------------------------

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
        p.outcome, coalesce(p.conflict, k.error, p.reason, case when w.execute then crossover.gate_reason(p.grp) end) as reason
    from crossover.pins p
    left join crossover.outbox o on o.id = p.id
    left join crossover.running u on u.id = p.id
    left join crossover.scheduled s on s.id = p.id
    left join crossover.ready r on r.id = p.id
    left join crossover.parked k on k.id = p.id
    left join crossover.gate w on w.id = p.id
    union all
    select i.id, i.account, i.kind, i.key, i.series, null, coalesce(i.grp, 'default'), i.priority,
        case when i.refused_at is null then 'accepted' else 'refused' end, null, null, null, i.created_at, null, i.run_at, null,
        0, null, i.reason
    from crossover.intake i
    where not exists (select from crossover.pins p where p.id = i.id)
    union all
    select t.id, t.account, t.kind, 'task_' || replace(t.id::text, '-', ''), null, null, t.grp, -t.rank,
        case when s.id is not null then 'scheduled' when r.worker is not null then 'running' when r.id is not null then 'ready'
            when w.id is not null then 'waiting' else coalesce(a.outcome, 'forgotten') end,
        'complete', 'postgres', 1, t.created_at, t.created_at, t.run_at,
        case when r.id is null and s.id is null and w.id is null then a.ended_at end,
        coalesce(r.attempt - 1, s.attempt - 1, w.attempt - 1, a.attempt, 0),
        case when r.id is null and s.id is null and w.id is null then a.outcome end,
        case when w.id is not null then crossover.gate_reason(t.grp) else a.error end
    from crossover.tasks t
    left join crossover.tasks_ready r on r.rank = t.rank and r.vt = t.vt and r.id = t.id
    left join crossover.tasks_scheduled s on s.id = t.id
    left join crossover.gate w on w.id = t.id
    left join lateral (
        select a.outcome, a.ended_at, a.attempt, a.error from crossover.attempts a where a.id = t.id order by a.ended_at desc limit 1) a on true;

create or replace view crossover.queue_depth as
    select grp, sum(ready)::bigint as ready, sum(scheduled)::bigint as scheduled, sum(running)::bigint as running,
        sum(rehearsals)::bigint as rehearsals, min(oldest) as oldest_due_at,
        coalesce(greatest(extract(epoch from clock_timestamp() - min(oldest)), 0), 0)::float8 as oldest_seconds,
        sum(waiting)::bigint as waiting
    from (
        select grp, count(*) as ready, 0 as scheduled, 0 as running, count(*) filter (where not execute) as rehearsals,
            min(due_at) as oldest, 0 as waiting
        from crossover.ready group by grp
        union all
        select grp, 0, count(*), 0, count(*) filter (where not execute), null, 0 from crossover.scheduled group by grp
        union all
        select grp, 0, 0, count(*), count(*) filter (where not execute), null, 0 from crossover.running group by grp
        union all
        select grp, count(*) filter (where worker is null), 0, count(worker), 0, min(due_at) filter (where worker is null), 0
        from crossover.tasks_ready group by grp
        union all
        select grp, 0, count(*), 0, 0, null, 0 from crossover.tasks_scheduled group by grp
        union all
        select grp, 0, 0, 0, count(*) filter (where not execute), min(due_at), count(*) from crossover.gate group by grp
    ) places
    group by grp;
