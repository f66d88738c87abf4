-- Work that only excludes (`exclusive`): of an account's interactions with the same key, at most one at a time runs, in any order.
-- docs/exclusion.md says what can be asked for.
--
-- Only what Postgres alone has (stage `complete`) may exclude: Temporal's copy could not. Each has a row in `turns` until it ends:
--
--   aside   it could not run whoever else runs: it waits for others (`after`), behind its series, or is parked. It has no turn.
--   later   it is due later, or waits for another attempt. It has no turn.
--   waits   it is due, and in the line of its key.
--   turn    it may run, or runs: its copy is at the gate of its group, ready or running. A unique index lets one of a key be here.
--
-- Whoever takes the copy out of these places (an end, a retry, parking: `end_pins` and `finish`) takes it out of `turn` in the
-- same transaction, and leaves a note. So does who comes to wait. `give_turns` goes by the notes, one at a time: where a key is
-- free and somebody waits, it gives the turn to the first, by priority and then in the order of enqueues. What finds its key
-- idle takes the turn at once (`take_turn`), so that who is alone waits for no pass.
--
-- What can come between: a note is committed with what it tells of, and goes only with a look that saw that; notes are rows of
-- their own, so that a note which comes during a look is not mistaken for one before it. Both who give turns have the key's
-- advisory lock until they commit, and look after they have it. Neither waits for it: a note that is not settled stays.
-- `find_overlooked_turns` is the net below.
--
-- Lock order: rows of `turns` come after pins and series, and nobody waits for others' while holding one.

create table crossover.turns (
    id           uuid primary key,
    exclusive_id uuid not null,
    exclusive    text not null,
    state        text not null default 'aside' check (state in ('aside', 'later', 'waits', 'turn')),
    since        timestamptz not null default clock_timestamp(),
    ord          bigint not null generated always as identity,
    due_at       timestamptz,
    attempt      integer,
    rank         smallint,
    grp          text
) with (fillfactor = 70);
comment on table crossover.turns is 'What has not ended and excludes others of its key, and where it stands in that.';
comment on column crossover.turns.exclusive_id is 'Made of the account and the key `exclusive`.';
comment on column crossover.turns.since is 'Since when it is in this state.';
comment on column crossover.turns.ord is 'Its place among those of its priority; a retry keeps it.';
create unique index turns_turn on crossover.turns (exclusive_id) where state = 'turn';
create index turns_line on crossover.turns (exclusive_id, rank, ord) where state = 'waits';
create index turns_later on crossover.turns (due_at) where state = 'later';

create table crossover.turn_notes (
    no           bigint generated always as identity primary key,
    exclusive_id uuid not null,
    noted_at     timestamptz not null default clock_timestamp()
);
comment on table crossover.turn_notes is 'Keys of which somebody has given up the turn, or come to wait for it, until that is looked at.';

alter table crossover.payloads add column exclusive text;
comment on column crossover.payloads.exclusive is 'The key of those that it never runs beside.';

create function crossover.turn_lock(p_exclusive_id uuid) returns bigint
language sql immutable as $$ select hashtextextended('crossover.turn ' || p_exclusive_id, 0) $$;

-- Why something is in the line of its key.
create function crossover.turn_reason(p_exclusive_id uuid, p_exclusive text) returns text
language sql stable as $$
    select format('its turn: no two of exclusive %s run at once%s', p_exclusive, (
        select format(', and it is that of %s', t.id) from crossover.turns t where t.exclusive_id = p_exclusive_id and t.state = 'turn'))
$$;

-- What comes to be placed and excludes others: true, it has its turn and is placed; else it is placed when it has.
create function crossover.take_turn(p_id uuid, p_due_at timestamptz, p_attempt integer, p_priority smallint, p_grp text)
returns boolean language plpgsql set enable_seqscan = off as $$
declare
    v_one   crossover.turns;
    v_mine  boolean;
    v_taken integer;
begin
    select * into v_one from crossover.turns t where t.id = p_id for update;
    if v_one.state = 'turn' then return true; end if;
    if p_due_at > clock_timestamp() then
        update crossover.turns t set state = 'later', since = clock_timestamp(), due_at = p_due_at, attempt = p_attempt,
            rank = -p_priority, grp = p_grp
        where t.id = p_id;
        return false;
    end if;
    -- Only where it looks idle, so that an enqueue in a long transaction holds up no line; and not by a snapshot that is older than
    -- the lock, which would not show whose turn it has become. A transaction that enqueues many goes in line with the rest of them: the
    -- table of locks is the server's, and small.
    v_taken := coalesce(nullif(current_setting('crossover.turns_taken', true), '')::integer, 0);
    if v_taken < 100 and current_setting('transaction_isolation') in ('read committed', 'read uncommitted')
        and not exists (select from crossover.turns t where t.exclusive_id = v_one.exclusive_id and t.state = 'turn')
        and not exists (select from crossover.turns t where t.exclusive_id = v_one.exclusive_id and t.state = 'waits')
    then
        v_mine := pg_try_advisory_xact_lock(crossover.turn_lock(v_one.exclusive_id));
        perform set_config('crossover.turns_taken', (v_taken + 1)::text, true);
        -- By a statement of its own.
        if v_mine then
            v_mine := not exists (select from crossover.turns t where t.exclusive_id = v_one.exclusive_id and t.state = 'turn')
                and not exists (select from crossover.turns t where t.exclusive_id = v_one.exclusive_id and t.state = 'waits');
        end if;
        if v_mine then
            update crossover.turns t set state = 'turn', since = clock_timestamp(), attempt = p_attempt, rank = -p_priority, grp = p_grp
            where t.id = p_id;
            return true;
        end if;
    end if;
    update crossover.turns t set state = 'waits', since = clock_timestamp(), due_at = p_due_at, attempt = p_attempt,
        rank = -p_priority, grp = p_grp
    where t.id = p_id;
    insert into crossover.turn_notes (exclusive_id) values (v_one.exclusive_id);
    return false;
end $$;

-- What has ended excludes nobody any more.
create function crossover.turns_ended(p_ids uuid[]) returns void
language plpgsql set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
begin
    if not exists (select from unnest(p_ids) as e (id) join crossover.turns t on t.id = e.id) then return; end if;
    with gone as (delete from crossover.turns t where t.id = any (p_ids) returning t.exclusive_id, t.state)
    insert into crossover.turn_notes (exclusive_id) select g.exclusive_id from gone g where g.state = 'turn';
end $$;

-- What waits for another attempt, or was parked, lets the next one go meanwhile. Called when the copies have their new places.
create function crossover.turns_let_go(p_ids uuid[]) returns void
language plpgsql set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off as $$
begin
    if not exists (select from unnest(p_ids) as h (id) join crossover.turns t on t.id = h.id) then return; end if;
    with later as (
        delete from crossover.scheduled s using crossover.turns t
        where s.id = any (p_ids) and t.id = s.id returning s.id, s.due_at, s.attempt),
    let_go as (
        update crossover.turns t set state = case when l.id is null then 'aside' else 'later' end, since = clock_timestamp(),
            due_at = l.due_at, attempt = l.attempt
        from unnest(p_ids) as h (id) left join later l on l.id = h.id
        where t.id = h.id and t.state = 'turn'
        returning t.exclusive_id)
    insert into crossover.turn_notes (exclusive_id) select g.exclusive_id from let_go g;
end $$;

-- Gives turns, by at most p_limit notes. One at a time; whoever comes meanwhile (busy) leaves it to that one and comes again.
-- waiting: whether anything excludes others at all;   more: whether it is worth looking again at once;   next_ms: when the next is due.
create function crossover.give_turns(
    p_limit integer, out given integer, out busy boolean, out waiting boolean, out more boolean, out next_ms double precision)
language plpgsql
-- By its indexes, whatever was known of these tables when the plan was made: a line may be a million long.
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
declare
    v_notes bigint[];
    v_keys  uuid[];
    v_had   uuid[];
    v_next  uuid[];
    v_left  integer;
begin
    given := 0; busy := false; more := false;
    waiting := exists (select from crossover.turns);
    if not waiting and not exists (select from crossover.turn_notes) then return; end if;
    if not pg_try_advisory_xact_lock(hashtextextended('crossover.turns', 0)) then busy := true; return; end if;

    with due as materialized (
        select t.id from crossover.turns t where t.state = 'later' and t.due_at <= statement_timestamp()
        order by t.due_at limit p_limit for update skip locked),
    moved as (
        update crossover.turns t set state = 'waits', since = clock_timestamp() from due d where t.id = d.id returning t.exclusive_id)
    insert into crossover.turn_notes (exclusive_id) select distinct m.exclusive_id from moved m;

    select array_agg(n.no), array_agg(distinct n.exclusive_id) into v_notes, v_keys
    from (select n.no, n.exclusive_id from crossover.turn_notes n order by n.no limit p_limit) n;
    if v_notes is not null then
        v_had := array(select k.id from unnest(v_keys) k (id) where pg_try_advisory_xact_lock(crossover.turn_lock(k.id)));
        -- By a statement of its own: it sees what those did who had the locks before.
        v_next := array(
            select l.id from unnest(v_had) k (id)
            cross join lateral (
                -- Whoever has one just now cancels it.
                select t.id from crossover.turns t where t.exclusive_id = k.id and t.state = 'waits' order by t.rank, t.ord limit 1
                for update skip locked) l
            where not exists (select from crossover.turns t where t.exclusive_id = k.id and t.state = 'turn'));
        update crossover.turns t set state = 'turn', since = clock_timestamp() where t.id = any (v_next);
        -- Due from now on: what it waited for the others is not the queue's delay.
        perform crossover.place(t.id, clock_timestamp(), t.attempt, (-t.rank)::smallint, true, t.grp)
        from crossover.turns t where t.id = any (v_next) order by t.rank, t.ord;
        given := cardinality(v_next);
        -- What is not settled takes its turn behind the other notes.
        with gone as (delete from crossover.turn_notes n where n.no = any (v_notes) returning n.exclusive_id, n.noted_at),
        keys as (select g.exclusive_id as id, min(g.noted_at) as noted_at from gone g group by g.exclusive_id)
        insert into crossover.turn_notes (exclusive_id, noted_at)
        select k.id, k.noted_at from keys k
        where k.id <> all (v_had)
            or not exists (select from crossover.turns t where t.exclusive_id = k.id and t.state = 'turn')
                and exists (select from crossover.turns t where t.exclusive_id = k.id and t.state = 'waits');
        get diagnostics v_left = row_count;
        -- Where most of it could not be settled, somebody has their lines: to come again at once would only write notes anew.
        more := cardinality(v_notes) = p_limit and v_left < p_limit / 2;
    end if;
    select extract(epoch from t.due_at - clock_timestamp()) * 1000 into next_ms
    from crossover.turns t where t.state = 'later' order by t.due_at limit 1;
end $$;

-- After a look that failed: the note that it began with takes its turn behind the others.
create function crossover.put_turns_off() returns void
language sql as $$
    with first as (
        delete from crossover.turn_notes n where n.no = (select f.no from crossover.turn_notes f order by f.no limit 1)
        returning n.exclusive_id, n.noted_at)
    insert into crossover.turn_notes (exclusive_id, noted_at) select f.exclusive_id, f.noted_at from first f
$$;

-- Looks for turns that were overlooked, among p_limit keys behind p_from: turns of what is in no place, and lines that go on although
-- nobody has the turn. None is by any sequence of steps that is known; this is the net. Returns how many, and where the next look
-- begins (null: at the start).
create function crossover.find_overlooked_turns(p_from uuid, p_limit integer, out overlooked integer, out next_from uuid)
language plpgsql
-- By its indexes, whatever was known of these tables when the plan was made: a line may be a million long.
set enable_seqscan = off set enable_bitmapscan = off set enable_sort = off set enable_hashjoin = off set enable_mergejoin = off set jit = off as $$
declare
    v_key  uuid   := coalesce(p_from, '00000000-0000-0000-0000-000000000000');
    v_keys uuid[] := '{}';
    v_long timestamptz := clock_timestamp() - interval '1 minute';
    v_rows integer;
begin
    for n in 1..p_limit loop
        v_key := least(
            (select t.exclusive_id from crossover.turns t where t.state = 'turn' and t.exclusive_id > v_key order by t.exclusive_id limit 1),
            (select t.exclusive_id from crossover.turns t where t.state = 'waits' and t.exclusive_id > v_key order by t.exclusive_id limit 1));
        exit when v_key is null;
        v_keys := v_keys || v_key;
    end loop;
    next_from := v_key;
    v_keys := array(select k.id from unnest(v_keys) k (id) where pg_try_advisory_xact_lock(crossover.turn_lock(k.id)));
    with nowhere as materialized (
        select t.id from crossover.turns t
        where t.exclusive_id = any (v_keys) and t.state = 'turn' and t.since < v_long
            and not exists (select from crossover.ready r where r.id = t.id)
            and not exists (select from crossover.running u where u.id = t.id)
            and not exists (select from crossover.gate g where g.id = t.id)
            and not exists (select from crossover.scheduled s where s.id = t.id)
        for update of t skip locked),
    ended as (
        delete from crossover.turns t using nowhere n
        where t.id = n.id and not exists (select from crossover.pins p where p.id = t.id and p.ended_at is null)
        returning t.exclusive_id),
    let_go as (
        update crossover.turns t set state = 'aside', since = clock_timestamp() from nowhere n
        where t.id = n.id and exists (select from crossover.pins p where p.id = t.id and p.ended_at is null)
        returning t.exclusive_id)
    insert into crossover.turn_notes (exclusive_id) select e.exclusive_id from ended e union all select l.exclusive_id from let_go l;
    get diagnostics overlooked = row_count;
    insert into crossover.turn_notes (exclusive_id)
    select k.id from unnest(v_keys) k (id)
    where not exists (select from crossover.turns t where t.exclusive_id = k.id and t.state = 'turn')
        and exists (select from crossover.turns t where t.exclusive_id = k.id and t.state = 'waits' and t.since < v_long)
        and not exists (select from crossover.turn_notes n where n.exclusive_id = k.id);
    get diagnostics v_rows = row_count;
    overlooked := overlooked + v_rows;
end $$;

-- Pins an interaction that excludes others, and may run after some (p_after, else null); see crossover.pin_after, also for `fault`.
create function crossover.pin_exclusive(
    p_account text, p_key text, p_kind text, p_stage text, p_flag_revision text,
    p_series text, p_series_id uuid, p_grp text, p_priority smallint, p_run_at timestamptz,
    p_payload_hash bytea, p_payload json, p_policy json, p_weight integer, p_grace interval,
    p_after uuid[], p_any boolean, p_run_on_failure boolean, p_exclusive text, p_exclusive_id uuid,
    out created boolean, out direct boolean, out pin crossover.pins, out behind uuid[], out fault text, out fault_ids uuid[])
language plpgsql as $$
declare
    v_id     uuid    := crossover.interaction_id(p_account, p_key);
    v_mine   boolean := false;
    v_pinned record;
begin
    if not exists (select from crossover.pins p where p.id = v_id) then
        if p_stage <> 'complete' or not exists (select from crossover.accounts a where a.account = p_account and a.state = 'armed') then
            fault := 'exclusive';
            return;
        end if;
        insert into crossover.turns (id, exclusive_id, exclusive) values (v_id, p_exclusive_id, p_exclusive) on conflict do nothing;
        v_mine := found;
    end if;
    if p_after is null then
        select f.*, null::text as fault, null::uuid[] as fault_ids into v_pinned from crossover.pin(
            p_account, p_key, p_kind, p_stage, p_flag_revision, p_series, p_series_id, p_grp, p_priority, p_run_at,
            p_payload_hash, p_payload, p_policy, p_weight, p_grace) f;
    else
        select * into v_pinned from crossover.pin_after(
            p_account, p_key, p_kind, p_stage, p_flag_revision, p_series, p_series_id, p_grp, p_priority, p_run_at,
            p_payload_hash, p_payload, p_policy, p_weight, p_grace, p_after, p_any, p_run_on_failure);
    end if;
    created := v_pinned.created;
    direct := v_pinned.direct;
    pin := v_pinned.pin;
    behind := v_pinned.behind;
    fault := v_pinned.fault;
    fault_ids := v_pinned.fault_ids;
    if fault is not null or not created then
        -- Somebody else has pinned the key meanwhile; whom it excludes is as that one said.
        if v_mine then delete from crossover.turns t where t.id = v_id; end if;
        return;
    end if;
    if pin.stage <> 'complete' or not v_mine then
        raise exception using errcode = '40001', message = format('account %s changes its stage just now; try again', p_account);
    end if;
    update crossover.payloads y set exclusive = p_exclusive where y.id = v_id and y.created_at = pin.created_at;
end $$;


-- As before, but what excludes others needs its turn.
create or replace function crossover.place(p_id uuid, p_due_at timestamptz, p_attempt integer, p_priority smallint, p_execute boolean, p_grp text)
returns void language plpgsql set enable_seqscan = off as $$
begin
    if exists (select from crossover.dependents d where d.id = p_id) then return; end if;
    if exists (select from crossover.turns t where t.id = p_id)
        and not crossover.take_turn(p_id, p_due_at, p_attempt, p_priority, p_grp) then
        return;
    end if;
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


-- As before, and whoever's turn it was gives it up.
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
    perform crossover.turns_ended(v_ended);
    return query select unnest(v_ended);
end $$;


-- As before, and what waits for another attempt, or is parked, gives its turn up.
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
    perform crossover.turns_let_go(v_held);
    return query select unnest(v_held);
end $$;


-- As before, and the line of an exclusion is one of the places where it may be.
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
            -- Whoever gives it its turn just now is waited for.
            update crossover.turns set state = 'aside' where id = p_id and state in ('later', 'waits');
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


-- As before, but what excludes others stays: Temporal's copy could not.
create or replace function crossover.to_rehearsal(p_id uuid, p_behind boolean) returns text
language plpgsql as $$
declare
    v_waits crossover.scheduled;
    v_ready crossover.ready;
    v_gate  crossover.gate;
begin
    if exists (select from crossover.dependents d where d.id = p_id) then return 'waits'; end if;
    if exists (select from crossover.turns t where t.id = p_id) then return 'exclusive'; end if;
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


-- As before; excluded: it waits for its turn, which `behind` has, if anybody has it just now.
create or replace function crossover.release(p_id uuid, out answer text, out behind uuid)
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
        if behind is null and exists (select from crossover.turns t where t.id = p_id and t.state = 'waits') then
            answer := 'excluded';
            select h.id into behind from crossover.turns t
            join crossover.turns h on h.exclusive_id = t.exclusive_id and h.state = 'turn' where t.id = p_id;
        end if;
    end if;
end $$;


-- What waits for its turn is somewhere.
create or replace view crossover.placed_pins as
    select id from crossover.ready union all
    select id from crossover.scheduled union all
    select id from crossover.running union all
    select id from crossover.parked union all
    select id from crossover.outbox union all
    select id from crossover.rehearsals union all
    select id from crossover.detached where closed_at is null union all
    select id from crossover.gate where not task union all
    select id from crossover.dependents union all
    select id from crossover.turns where state in ('later', 'waits');


-- As before, with what waits for its turn.
create or replace view crossover.interactions as
    select p.id, p.account, p.kind, p.key, p.series, p.series_no, p.grp, p.priority,
        case
            when p.outcome is not null then p.outcome
            when p.conflict is not null then 'held'
            when k.id is not null then 'unknown_outcome'
            when u.execute then 'running'
            when s.execute or e.state = 'later' then 'scheduled'
            when r.execute then 'ready'
            when p.owner = 'temporal' and o.id is null and p.run_at <= clock_timestamp() then 'running'
            when p.owner = 'temporal' and p.run_at > clock_timestamp() then 'scheduled'
            else 'waiting'
        end as state,
        p.stage, p.owner, p.epoch, p.created_at as accepted_at, p.created_at as pinned_at, p.run_at, p.ended_at, p.attempts,
        p.outcome, coalesce(p.conflict, k.error, p.reason, case when w.execute then crossover.gate_reason(p.grp)
            when e.state = 'waits' then crossover.turn_reason(e.exclusive_id, e.exclusive) end) as reason
    from crossover.pins p
    left join crossover.outbox o on o.id = p.id
    left join crossover.running u on u.id = p.id
    left join crossover.scheduled s on s.id = p.id
    left join crossover.ready r on r.id = p.id
    left join crossover.parked k on k.id = p.id
    left join crossover.gate w on w.id = p.id
    left join crossover.turns e on e.id = p.id
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
