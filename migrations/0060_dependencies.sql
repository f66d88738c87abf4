-- Dependencies: work that waits until other work has ended (`after`). docs/dependencies.md says what can be asked for.
--
-- Only what Postgres alone has (stage `complete`) may wait so: Temporal's copy could not. What waits is in no place: `place`
-- leaves it out as long as it is in `dependents`. Whoever ends work that is waited for leaves a row in `ended_upstreams`, in the same
-- transaction; `settle_dependents` goes on from there, one at a time and a bounded number, however many wait for one.
--
-- That an end is never overlooked: whoever pins work that waits shares the locks of what it waits for, looks how that stands, and
-- commits its edges before it lets go. An end excludes that, and looks for edges after it has its locks.
--
-- All edges lead to what was pinned before, so there is no circle, and none through a series either: a member waits for lower numbers.
--
-- Lock order: what is waited for is never waited for itself (nowait); then series, as everywhere. A settlement waits for nobody: what
-- another transaction has, it leaves for the next look.

create table crossover.dependents (
    id             uuid primary key,
    since          timestamptz not null default clock_timestamp(),
    any_of         boolean not null,
    run_on_failure boolean not null,
    named          integer not null,
    unended        integer not null,
    succeeded      integer not null,
    lost           integer not null,
    first_lost     uuid
) with (fillfactor = 70);
comment on table crossover.dependents is 'What waits for other work to end. A row goes when it need not wait any longer.';
comment on column crossover.dependents.any_of is 'One that has succeeded is enough.';
comment on column crossover.dependents.run_on_failure is 'It runs whatever came of them. Else it is cancelled as soon as it can''t be any more as it was asked for.';
comment on column crossover.dependents.named is 'How many it was to wait for.';
comment on column crossover.dependents.unended is 'How many of them have not ended, as far as was settled.';
comment on column crossover.dependents.first_lost is 'One of those that ended and did not succeed.';

create table crossover.dependencies (
    upstream uuid not null,
    id       uuid not null,
    primary key (upstream, id)
);
comment on table crossover.dependencies is 'Who waits (id) for whom (upstream), while that has not ended.';
create index dependencies_of on crossover.dependencies (id);

create table crossover.ended_upstreams (
    upstream   uuid primary key,
    ended_at   timestamptz not null default clock_timestamp(),
    look_at    timestamptz not null default clock_timestamp(),
    settled_to uuid,
    outcome    text not null
);
comment on table crossover.ended_upstreams is 'Notes of work that has ended and was waited for, until that is settled with everyone who waits.';
comment on column crossover.ended_upstreams.look_at is 'The longest not looked at is looked at next.';
comment on column crossover.ended_upstreams.settled_to is 'How far the last look came among those that wait for it, by their ids.';
create index ended_upstreams_look on crossover.ended_upstreams (look_at);

alter table crossover.payloads add column after json;
comment on column crossover.payloads.after is 'What it was to wait for, as it was asked.';

-- What becomes of work that waits, by how those stand that it waits for: wait, run or skip. Pure.
create function crossover.after_verdict(p_any boolean, p_run_on_failure boolean, p_unended integer, p_succeeded integer, p_lost integer)
returns text language sql immutable as $$
    select case
        when p_any and (p_succeeded > 0 or p_run_on_failure and p_lost > 0) then 'run'
        when not p_any and p_lost > 0 and not p_run_on_failure then 'skip'
        when p_unended > 0 then 'wait'
        when p_any and not p_run_on_failure then 'skip'
        else 'run' end
$$;

create function crossover.skip_reason(p_any boolean, p_named integer, p_lost uuid) returns text
language sql immutable as $$
    select case when p_any and p_named > 1 then format('skipped: none of the %s that it was to run after succeeded', p_named)
        else format('skipped: %s, which it was to run after, did not succeed', p_lost) end
$$;

-- How work stands that may be waited for, locked until the end of the transaction where it has not ended. Nothing is waited for:
-- 55P03 where somebody else has it just now, or has moved it in between. No row: the account has no such work.
--
-- Of a task the place is locked, and so that a claim may still take it: what must not happen is that the place goes.
create function crossover.lock_upstreams(p_account text, p_ids uuid[])
returns table (id uuid, outcome text) language plpgsql
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
#variable_conflict use_column
declare
    v_tasks  uuid[] := array(select u.id from unnest(p_ids) u (id) where crossover.named_at(u.id) is not null order by u.id);
    v_locked uuid[] := array(
        select p.id from crossover.pins p where p.id = any (p_ids) and p.account = p_account and p.ended_at is null
        order by p.id for share nowait);
    v_ids      uuid[];
    v_outcomes text[];
begin
    if v_tasks <> '{}' then
        v_locked := v_locked || array(
            select r.id from unnest(v_tasks) u (id)
            join crossover.tasks t on t.id = u.id and t.created_at = crossover.named_at(u.id) and t.account = p_account
            join crossover.tasks_ready r on r.rank = t.rank and r.vt = t.vt and r.id = t.id
            order by u.id for key share of r nowait);
        v_locked := v_locked || array(
            select s.id from crossover.tasks_scheduled s where s.id = any (v_tasks) and s.account = p_account
            order by s.id for key share nowait);
        v_locked := v_locked || array(
            select g.id from crossover.gate g where g.id = any (v_tasks) and g.task and g.account = p_account
            order by g.id for key share nowait);
    end if;
    select array_agg(f.id), array_agg(f.outcome) into v_ids, v_outcomes from (
        select p.id, p.outcome from crossover.pins p where p.id = any (p_ids) and p.account = p_account
        union all
        select t.id, e.outcome from unnest(v_tasks) u (id)
        join crossover.tasks t on t.id = u.id and t.created_at = crossover.named_at(u.id) and t.account = p_account
        left join lateral (
            select a.outcome from crossover.attempts a
            where a.id = t.id and a.id <> all (v_locked) and a.retry_ms is null
                and a.ended_at >= t.created_at - interval '1 hour' and a.ended_at < statement_timestamp() + interval '1 hour'
            order by a.ended_at desc limit 1) e on true) f;
    -- What came, or moved from one place to another, between the looks was not locked.
    if exists (select from unnest(v_ids, v_outcomes) f (id, outcome) where f.outcome is null and f.id <> all (v_locked)) then
        raise exception using errcode = '55P03', message = 'what is waited for moves just now';
    end if;
    return query select f.id, f.outcome from unnest(v_ids, v_outcomes) f (id, outcome);
end $$;

-- Pins an interaction that runs after others; see crossover.pin. Nothing is written where `fault` is not null:
--   stage: only work that Postgres alone has may wait, and the account is not in stage `complete`, or not armed;
--   unknown: there is no work of the account with the ids of `fault_ids`.
create function crossover.pin_after(
    p_account text, p_key text, p_kind text, p_stage text, p_flag_revision text,
    p_series text, p_series_id uuid, p_grp text, p_priority smallint, p_run_at timestamptz,
    p_payload_hash bytea, p_payload json, p_policy json, p_weight integer, p_grace interval,
    p_after uuid[], p_any boolean, p_run_on_failure boolean,
    out created boolean, out direct boolean, out pin crossover.pins, out behind uuid[], out fault text, out fault_ids uuid[])
language plpgsql as $$
declare
    v_id        uuid   := crossover.interaction_id(p_account, p_key);
    v_ids       uuid[] := array(select distinct unnest(p_after) order by 1);
    v_found     uuid[];
    v_open      uuid[];
    v_succeeded integer;
    v_lost      integer;
    v_first     uuid;
    v_verdict   text;
    v_mine      boolean := false;
    v_pinned    record;
begin
    if not exists (select from crossover.pins p where p.id = v_id) then
        if p_stage <> 'complete' or not exists (select from crossover.accounts a where a.account = p_account and a.state = 'armed') then
            fault := 'stage';
            return;
        end if;
        for v_try in 1..200 loop
            begin
                select array_agg(l.id), array_agg(l.id order by l.id) filter (where l.outcome is null),
                    count(*) filter (where l.outcome = 'succeeded'), count(*) filter (where l.outcome <> 'succeeded'),
                    (min(l.id::text) filter (where l.outcome <> 'succeeded'))::uuid
                into v_found, v_open, v_succeeded, v_lost, v_first
                from crossover.lock_upstreams(p_account, v_ids) l;
                exit;
            exception when lock_not_available then
                -- Whoever has it ends it just now, or shares it with a claim: either takes a moment.
                if v_try = 200 then raise; end if;
                perform pg_sleep(0.005);
            end;
        end loop;
        fault_ids := array(select u.id from unnest(v_ids) u (id) where u.id <> all (coalesce(v_found, '{}')));
        if fault_ids <> '{}' then
            fault := 'unknown';
            return;
        end if;
        v_verdict := crossover.after_verdict(p_any, p_run_on_failure, coalesce(cardinality(v_open), 0), v_succeeded, v_lost);
        if v_verdict <> 'run' then
            insert into crossover.dependents (id, any_of, run_on_failure, named, unended, succeeded, lost, first_lost)
            values (v_id, p_any, p_run_on_failure, cardinality(v_ids), coalesce(cardinality(v_open), 0), v_succeeded, v_lost, v_first)
            on conflict do nothing;
            v_mine := found;
        end if;
        if v_mine then
            -- What was cancelled or released under this key before it was forgotten may have left some.
            delete from crossover.dependencies d where d.id = v_id;
        end if;
        if v_mine and v_verdict = 'wait' then
            insert into crossover.dependencies (upstream, id) select u.id, v_id from unnest(v_open) u (id);
        end if;
    end if;

    select * into v_pinned from crossover.pin(
        p_account, p_key, p_kind, p_stage, p_flag_revision, p_series, p_series_id, p_grp, p_priority, p_run_at,
        p_payload_hash, p_payload, p_policy, p_weight, p_grace);
    created := v_pinned.created;
    direct := v_pinned.direct;
    pin := v_pinned.pin;
    behind := v_pinned.behind;
    if not created then
        -- Somebody else has pinned the key meanwhile; what it waits for is as that one said.
        if v_mine then
            delete from crossover.dependencies d where d.id = v_id;
            delete from crossover.dependents d where d.id = v_id;
        end if;
        return;
    end if;
    if pin.stage <> 'complete' then
        raise exception using errcode = '40001', message = format('account %s changes its stage just now; try again', p_account);
    end if;
    update crossover.payloads y set after = json_build_object('ids', to_json(v_ids),
        'when', case when p_any then 'any' else 'all' end, 'on_failure', case when p_run_on_failure then 'run' else 'skip' end)
    where y.id = v_id and y.created_at = pin.created_at;
    if v_verdict = 'skip' then
        delete from crossover.dependents d where d.id = v_id;
        perform crossover.end_pins('postgres', array[v_id], array[pin.epoch], array[0], array['cancelled'],
            array[crossover.skip_reason(p_any, cardinality(v_ids), v_first)]);
        select * into pin from crossover.pins p where p.id = v_id;
    end if;
end $$;

-- Notes which of these ends somebody waits for. Called with their locks, in the transaction that ends them.
create function crossover.upstreams_ended(p_ids uuid[]) returns void
language plpgsql
-- By the indexes, whatever was known of these tables when the plan was made.
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
begin
    if not exists (select from unnest(p_ids) as e (id) join crossover.dependencies d on d.upstream = e.id) then return; end if;
    insert into crossover.ended_upstreams (upstream, outcome)
    select p.id, p.outcome from crossover.pins p
    where p.id = any (p_ids) and p.ended_at is not null and exists (select from crossover.dependencies d where d.upstream = p.id)
    on conflict do nothing;
end $$;

-- The same for tasks, of which some may be tried again.
create function crossover.tasks_ended(p_ids uuid[]) returns void
language plpgsql set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
begin
    if not exists (select from unnest(p_ids) as e (id) join crossover.dependencies d on d.upstream = e.id) then return; end if;
    insert into crossover.ended_upstreams (upstream, outcome)
    select w.id, a.outcome from (
        select distinct e.id from unnest(p_ids) as e (id) join crossover.dependencies d on d.upstream = e.id) w
    cross join lateral (
        select a.outcome from crossover.attempts a
        where a.id = w.id and a.retry_ms is null
            and a.ended_at >= crossover.named_at(w.id) - interval '1 hour' and a.ended_at < statement_timestamp() + interval '1 hour'
        order by a.ended_at desc limit 1) a
    on conflict do nothing;
end $$;

-- Settles what has ended with what waits for it, at most p_limit edges, those of many notes in turn. One at a time: whoever comes
-- meanwhile leaves it to that one.
-- waiting: whether anything waits at all;   more: whether it is worth looking again at once.
create function crossover.settle_dependents(p_limit integer, out released integer, out skipped integer, out waiting boolean, out more boolean)
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

-- After a settlement that failed: what it began with takes its turn behind the others.
create function crossover.put_settlement_off() returns void
language sql as $$
    update crossover.ended_upstreams u set look_at = clock_timestamp()
    where u.upstream = (select n.upstream from crossover.ended_upstreams n order by n.look_at limit 1)
$$;

-- Looks whether ends were overlooked that something waits for, among at most p_limit of what waits, behind p_from by id. None is by any
-- sequence of steps that is known; this is the net. Returns how many, and where the next look begins (null: at the start).
create function crossover.find_overlooked(p_from uuid, p_limit integer, out overlooked integer, out next_from uuid)
language plpgsql set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
declare
    v_ids uuid[] := array(
        select d.id from crossover.dependents d where d.id > coalesce(p_from, '00000000-0000-0000-0000-000000000000')
        order by d.id limit p_limit);
begin
    insert into crossover.ended_upstreams (upstream, outcome)
    select distinct e.upstream, coalesce(p.outcome, a.outcome, 'forgotten')
    from unnest(v_ids) i (id)
    join crossover.dependents w on w.id = i.id and w.since < clock_timestamp() - interval '1 minute'
    join crossover.dependencies e on e.id = i.id
    left join crossover.pins p on p.id = e.upstream
    left join crossover.tasks t on t.id = e.upstream and t.created_at = crossover.named_at(e.upstream)
    left join lateral (
        select a.outcome, a.ended_at from crossover.attempts a where a.id = e.upstream and a.retry_ms is null
            and a.ended_at >= coalesce(p.created_at, crossover.named_at(e.upstream)) - interval '1 hour'
            and a.ended_at < statement_timestamp() + interval '1 hour'
        order by a.ended_at desc limit 1) a on p.id is null
    -- What has ended just now has its note, or is about to have it.
    where case when p.id is not null then p.ended_at < clock_timestamp() - interval '1 minute'
        else coalesce(a.ended_at, '-infinity') < clock_timestamp() - interval '1 minute'
            and not exists (select from crossover.tasks_ready r where r.rank = t.rank and r.vt = t.vt and r.id = t.id)
            and not exists (select from crossover.tasks_scheduled s where s.id = e.upstream)
            and not exists (select from crossover.gate g where g.id = e.upstream) end
    on conflict do nothing;
    get diagnostics overlooked = row_count;
    next_from := case when cardinality(v_ids) = p_limit then v_ids[p_limit] end;
end $$;

-- Puts what need not wait for others any longer where it belongs; of a series, what is its head: the others are placed when their
-- turn comes. With the locks of the pins; takes those of the series.
create function crossover.place_released(p_ids uuid[]) returns void
language plpgsql as $$
begin
    perform from crossover.series s
    where s.series_id in (select p.series_id from crossover.pins p where p.id = any (p_ids)) order by s.series_id for update;
    -- It could not have run before: its policy's time begins now.
    update crossover.pins p set run_at = clock_timestamp() where p.id = any (p_ids) and p.ended_at is null and p.run_at < clock_timestamp();
    perform crossover.place(p.id, p.run_at, 1, p.priority, true, p.grp)
    from crossover.pins p left join crossover.series s on s.series_id = p.series_id
    where p.id = any (p_ids) and p.ended_at is null and p.owner = 'postgres' and p.conflict is null
        and (p.series_id is null or s.head_no = p.series_no);
end $$;

-- Lets work run without what it waits for. The answer: released;   behind: it waits for its series only, or as well, and nothing but that
-- is left to wait for;   not_waiting;   ended;   null: there is no such pin.
create function crossover.release(p_id uuid, out answer text, out behind uuid)
language plpgsql as $$
declare
    v_pin crossover.pins;
begin
    select * into v_pin from crossover.pins p where p.id = p_id for update;
    if not found then return; end if;
    if v_pin.ended_at is not null then answer := 'ended'; return; end if;
    perform from crossover.series s where s.series_id = v_pin.series_id for update;
    select p.id into behind from crossover.series s join crossover.pins p on p.series_id = s.series_id and p.series_no = s.head_no
    where s.series_id = v_pin.series_id and s.head_no < v_pin.series_no;
    -- The edges stay until those end: a settlement may have them, and waits for this pin.
    delete from crossover.dependents d where d.id = p_id;
    if found then
        answer := 'released';
        perform crossover.place_released(array[p_id]);
    else
        answer := case when behind is null then 'not_waiting' else 'behind' end;
    end if;
end $$;

-- What waits for others is somewhere.
create or replace view crossover.placed_pins as
    select id from crossover.ready union all
    select id from crossover.scheduled union all
    select id from crossover.running union all
    select id from crossover.parked union all
    select id from crossover.outbox union all
    select id from crossover.rehearsals union all
    select id from crossover.detached where closed_at is null union all
    select id from crossover.gate where not task union all
    select id from crossover.dependents;

-- As before, but what waits for others is left out.
create or replace function crossover.place(p_id uuid, p_due_at timestamptz, p_attempt integer, p_priority smallint, p_execute boolean, p_grp text)
returns void language plpgsql set enable_seqscan = off as $$
begin
    if exists (select from crossover.dependents d where d.id = p_id) then return; end if;
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


-- As before, and it notes who was waited for.
create or replace function crossover.end_pins(p_owner text, p_ids uuid[], p_epochs integer[], p_attempts integer[], p_outcomes text[], p_reasons text[])
returns setof uuid language plpgsql as $$
declare
    v_ended  uuid[];
    v_series uuid[];
    v_heads  bigint[];
begin
    with ended as (
        update crossover.pins p
        set ended_at = clock_timestamp(), outcome = e.outcome, reason = e.reason, attempts = greatest(p.attempts, e.attempt)
        from unnest(p_ids, p_epochs, p_attempts, p_outcomes, p_reasons) as e (id, epoch, attempt, outcome, reason)
        where p.id = e.id and p.epoch = e.epoch and p.owner = p_owner and p.ended_at is null
        returning p.id, p.series_id)
    select array_agg(id), array_agg(distinct series_id) filter (where series_id is not null) into v_ended, v_series from ended;

    if v_series is not null then
        -- In one order everywhere, so that two batches never wait for each other.
        perform from crossover.series where series_id = any (v_series) order by series_id for update;
        with heads as (
            select s.series_id, coalesce(
                (select min(p.series_no) from crossover.pins p
                 where p.series_id = s.series_id and p.series_no >= s.head_no and p.ended_at is null), s.last_no + 1) as head_no
            from crossover.series s where s.series_id = any (v_series)),
        moved as (
            update crossover.series s set head_no = h.head_no from heads h
            where s.series_id = h.series_id and s.head_no < h.head_no returning s.series_id, s.head_no)
        select array_agg(series_id), array_agg(head_no) into v_series, v_heads from moved;
        -- Its turn has come, so it is due from now on: what it waited behind others is not the queue's delay.
        perform crossover.place(p.id, greatest(p.run_at, clock_timestamp()), p.attempts + 1, p.priority, p.owner = 'postgres', p.grp)
        from unnest(v_series, v_heads) as m (series_id, head_no)
        join crossover.pins p on p.series_id = m.series_id and p.series_no = m.head_no
        where p.on_postgres and p.conflict is null;
    end if;
    -- However it ended: nobody needs to say any longer what came of it.
    delete from crossover.parked k where k.id = any (v_ended);
    perform crossover.upstreams_ended(v_ended);
    return query select unnest(v_ended);
end $$;


-- As before, and what waits for others is one of the places where it may be.
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
            delete from crossover.dependents where id = p_id;
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


-- As before, and it notes who was waited for.
create or replace function crossover.finish_tasks(
    p_worker uuid, p_ranks smallint[], p_vts bigint[], p_ids uuid[], p_attempts integer[], p_outcomes text[], p_permanents boolean[],
    p_retry_afters bigint[], p_retries bigint[], p_results text[], p_errors text[], p_unknowns text[])
returns setof uuid language plpgsql as $$
#variable_conflict use_column
begin
    return query with held as (
        delete from crossover.tasks_ready r
        using unnest(p_ranks, p_vts, p_ids, p_attempts, p_outcomes, p_permanents, p_retry_afters, p_retries, p_results, p_errors, p_unknowns)
            as f (rank, vt, id, attempt, outcome, permanent, retry_after_ms, retry_ms, result, error, unknown)
        where r.rank = f.rank and r.vt = f.vt and r.id = f.id and r.attempt = f.attempt and r.worker = p_worker
        returning r.rank, r.vt, r.id, r.created_at, r.due_at, r.started_at, r.attempt, r.account, r.kind, r.grp, r.wish,
            f.outcome, f.permanent, f.retry_after_ms, f.retry_ms, f.result, f.error, f.unknown),
    ended as (
        select h.*, h.wish is not null and h.retry_ms is not null as called_off from held h),
    recorded as (
        insert into crossover.attempts (id, due_at, started_at, ended_at, epoch, attempt, rehearsal, permanent,
            retry_after_ms, retry_ms, side, outcome, result, error, unknown)
        select id, due_at, started_at, clock_timestamp(), 1, attempt, false, permanent, retry_after_ms,
            case when not called_off then retry_ms end, 'postgres', case when called_off then 'cancelled' else outcome end,
            result::json, case when called_off then concat_ws('; ', wish, error) else error end, unknown from ended),
    again as (
        insert into crossover.tasks_scheduled (id, due_at, created_at, vt, rank, attempt, account, kind, grp)
        select id, clock_timestamp() + retry_ms * interval '1 millisecond', created_at, vt, rank, attempt + 1, account, kind, grp
        from ended where retry_ms is not null and not called_off)
    select id from held;
    -- By a statement of its own, which sees who came to wait before this had its locks.
    perform crossover.tasks_ended(p_ids);
end $$;


-- As before, and it notes who was waited for.
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
            perform crossover.tasks_ended(array[p_id]);
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


-- As before, but what waits for others stays: Temporal's copy could not.
create or replace function crossover.to_rehearsal(p_id uuid, p_behind boolean) returns text
language plpgsql as $$
declare
    v_waits crossover.scheduled;
    v_ready crossover.ready;
    v_gate  crossover.gate;
begin
    if exists (select from crossover.dependents d where d.id = p_id) then return 'waits'; end if;
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
