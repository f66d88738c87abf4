-- History: what has ended is kept for the retention of its kind and then goes, mostly as whole partitions; and upkeep that one
-- process at a time does, with a row that says how it went. docs/postgres.md says what grows, who drops it, and when.

-- Upkeep -----------------------------------------------------------------------------------------------------

-- A lease in a row rather than an advisory lock: it needs no session (PgBouncer), it says when the duty was last done whoever did
-- it, and a restart of all processes does not do everything again.
create table crossover.maintenance (
    duty         text primary key,
    known_since  timestamptz not null default clock_timestamp(),
    due_at       timestamptz not null default '-infinity',
    holder       uuid,
    lease_until  timestamptz not null default '-infinity',
    began_at     timestamptz,
    succeeded_at timestamptz,
    failures     integer not null default 0,
    error        text,
    found        jsonb
) with (fillfactor = 50);
comment on table crossover.maintenance is 'Upkeep: who is at it, when it was last done, and why it failed since.';
comment on column crossover.maintenance.failures is 'Failures in a row, since it was last done.';
comment on column crossover.maintenance.found is 'What it counted when it was last done, where it counts.';

-- Takes a duty that is due and that nobody is at. One that died at it is waited for until its lease ends.
create function crossover.begin_duty(p_duty text, p_holder uuid, p_lease interval) returns boolean
language plpgsql as $$
begin
    insert into crossover.maintenance (duty) values (p_duty) on conflict do nothing;
    update crossover.maintenance m set holder = p_holder, lease_until = clock_timestamp() + p_lease, began_at = clock_timestamp()
    where m.duty = p_duty and m.due_at <= clock_timestamp() and m.lease_until <= clock_timestamp();
    return found;
end $$;

-- Says how a duty went, and when it is due again: after each failure in a row twice as late as after the one before, up to 32 times.
-- One that was taken over meanwhile is the other's to report.
create function crossover.end_duty(p_duty text, p_holder uuid, p_again interval, p_error text, p_found jsonb) returns void
language sql as $$
    update crossover.maintenance m set lease_until = '-infinity',
        due_at = clock_timestamp() + case when p_error is null then p_again else p_again * (2 ^ least(m.failures, 5)) end,
        succeeded_at = case when p_error is null then clock_timestamp() else m.succeeded_at end,
        failures = case when p_error is null then 0 else m.failures + 1 end, error = p_error,
        found = coalesce(p_found, m.found)
    where m.duty = p_duty and m.holder = p_holder and m.lease_until > '-infinity'
$$;

-- What goes is decided by the database's clock alone, so one that jumped ahead would have everything taken away. The process at it
-- says what time it has (p_now), and nothing goes while the two differ by more than may be. The start of the statement is
-- compared, and all that is asked of the time in it is asked of that instant.
create function crossover.agree_on_time(p_now timestamptz) returns void
language plpgsql as $$
begin
    if p_now is null or p_now not between now() - interval '1 hour' and now() + interval '1 hour' then
        raise exception 'nothing is taken away: the database has % and the process that does upkeep has %, more than an hour apart; set the clock that is wrong',
            now(), coalesce(p_now::text, 'no time');
    end if;
end $$;

-- What must stay -----------------------------------------------------------------------------------------------

-- Tasks that have not ended: whoever makes another place for a task adds it here.
create view crossover.unended_tasks as
    select r.id, r.created_at from crossover.tasks_ready r
    union all
    select s.id, s.created_at from crossover.tasks_scheduled s;

-- Pins of which something is still somewhere, ended or not: whoever makes another place for a copy adds it here.
create view crossover.placed_pins as
    select id from crossover.ready union all
    select id from crossover.scheduled union all
    select id from crossover.running union all
    select id from crossover.parked union all
    select id from crossover.outbox union all
    select id from crossover.rehearsals union all
    select id from crossover.detached where closed_at is null;

-- When a task was named, which its id says, and the other way round: the lowest id of that time. Null for what is no task's id.
create function crossover.named_at(p_id uuid) returns timestamptz
language sql immutable strict parallel safe as $$
    select case when substr(p_id::text, 15, 1) = '7'
        then timestamptz 'epoch' + ('x' || lpad(replace(left(p_id::text, 13), '-', ''), 16, '0'))::bit(64)::bigint * interval '1 millisecond' end
$$;
create function crossover.lowest_id(p_at timestamptz) returns uuid
language sql immutable strict parallel safe as $$
    select (lpad(to_hex(floor(extract(epoch from greatest(p_at, timestamptz 'epoch')) * 1000)::bigint), 12, '0') || repeat('0', 20))::uuid
$$;

-- The rows `x` of a partition that must stay, as the rest of a query after its list. In it $1 and $2 are kinds and what is kept of
-- them, $3 what is kept of the others, $4 and $5 from when to when the partition is, $6 what is kept of what was compared.
--
-- What is asked is when the interaction ended, not when its row was written: one that was scheduled a year ahead has a payload
-- that is a year old. Attempts of a task stay as long as its record, and payloads and attempts of what is pinned as long as the
-- pin (forget_pins): the comparator reads them, and who mirrors or delivers a copy.
create function crossover.what_stays(p_parent text, p_part text) returns text
language plpgsql immutable as $$
begin
    return case p_parent
    when 'tasks' then format(
        'from crossover.%I x left join unnest($1::text[], $2::interval[]) k (kind, keep) on k.kind = x.kind
         left join (
            -- Ids of tasks are in the order of their time, so this reads what was enqueued in these days and nothing else.
            select a.id, max(a.ended_at) as ended_at from crossover.attempts a
            where a.id >= crossover.lowest_id($4) and a.id < crossover.lowest_id($5)
                and a.ended_at >= now() - (
                    select max(s.keep) from unnest($2::interval[] || $3) s (keep) where $4 + s.keep <= now())
            group by a.id) e on e.id = x.id
         left join (
            select distinct u.id from crossover.unended_tasks u where u.created_at >= $4 and u.created_at < $5) u on u.id = x.id
         where u.id is not null or x.created_at >= now() - coalesce(k.keep, $3)
            or e.ended_at >= now() - coalesce(k.keep, $3)', p_part)
    when 'payloads' then format(
        'from crossover.%I x join crossover.pins p on p.id = x.id
         left join unnest($1::text[], $2::interval[]) k (kind, keep) on k.kind = p.kind
         left join (select distinct u.id from crossover.placed_pins u) u on u.id = x.id
         left join crossover.observations o on o.id = x.id and o.look_at is not null
         where p.ended_at is null or u.id is not null or o.id is not null or p.ended_at >= now() - greatest(coalesce(k.keep, $3),
            case when p.on_temporal then $3 end, case when p.stage in (''shadow'', ''live'') then $6 end)', p_part)
    when 'attempts' then format(
        'from crossover.%I x left join crossover.pins p on p.id = x.id
         left join unnest($1::text[], $2::interval[]) k (kind, keep) on k.kind = p.kind
         left join (select distinct u.id from crossover.placed_pins u) u on u.id = x.id
         left join lateral (
            select true as known from crossover.tasks t
            where t.id = x.id and t.created_at = crossover.named_at(x.id) limit 1) t on true
         left join crossover.observations o on o.id = x.id and o.look_at is not null
         where t.known or u.id is not null or o.id is not null or p.id is not null and p.ended_at is null
            or p.ended_at >= now() - greatest(coalesce(k.keep, $3),
                case when p.on_temporal then $3 end, case when p.stage in (''shadow'', ''live'') then $6 end)', p_part)
    end;
end $$;

-- Partitions that go ---------------------------------------------------------------------------------------------

-- When a partition was last cleared of what had been kept long enough. Of one that was dropped there is no row.
create table crossover.cleared_partitions (
    part       text primary key,
    cleared_at timestamptz not null,
    kept       bigint not null
);

-- The dated partitions of history, with the time from and to which they are.
create view crossover.history_partitions as
    select p.relname as parent, c.relname as part, c.oid,
        substring(b.bound from 'FROM \(''([^'']+)''\)')::timestamptz as from_at,
        substring(b.bound from 'TO \(''([^'']+)''\)')::timestamptz as to_at, b.bound
    from pg_inherits i
    join pg_class p on p.oid = i.inhparent
    join pg_class c on c.oid = i.inhrelid
    cross join lateral (select pg_get_expr(c.relpartbound, c.oid) as bound) b
    where p.oid in ('crossover.tasks'::regclass, 'crossover.payloads'::regclass, 'crossover.attempts'::regclass)
        and b.bound like 'FOR VALUES FROM%';

-- The partitions that have something to lose by now, tasks before attempts, because those follow them. Each is looked at once for
-- every retention that passes, and what stayed because it had not ended is looked at again every week.
create function crossover.partitions_to_clear(p_keeps interval[], p_default interval)
returns table (parent text, part text) language sql stable as $$
    select h.parent, h.part from crossover.history_partitions h
    left join crossover.cleared_partitions c on c.part = h.part
    where exists (
            select from unnest(p_keeps || p_default) s (keep)
            where h.to_at + s.keep <= clock_timestamp() and (c.cleared_at is null or c.cleared_at < h.to_at + s.keep))
        or c.cleared_at + interval '7 days' <= clock_timestamp()
            and h.to_at + (select max(s.keep) from unnest(p_keeps || p_default) s (keep)) <= clock_timestamp()
    order by h.parent = 'attempts', h.to_at, h.parent
$$;

-- Whether a transaction of some seconds or more has read this partition or the whole table, so that the lock is not to be had.
create function crossover.read_for_long(p_parent text, p_part text) returns boolean
language sql volatile as $$
    select exists (
        select from pg_locks l left join pg_stat_activity a on a.pid = l.pid
        where l.locktype = 'relation' and l.granted and l.pid is distinct from pg_backend_pid()
            and l.database = (select d.oid from pg_database d where d.datname = current_database())
            and l.relation in (format('crossover.%I', p_parent)::regclass, format('crossover.%I', p_part)::regclass)
            -- One that is prepared has no process.
            and (l.pid is null or a.xact_start < clock_timestamp() - interval '5 seconds'))
$$;

-- Clears a partition of what has been kept long enough: what stays is copied into a new one, which takes its place in the same
-- transaction; if nothing stays there is none. So no row is ever deleted, the disk is given back, and a crash leaves what was
-- there. While the copy is made, nobody waits for it but who would change a row of that very day; that the places are
-- changed locks the whole table, which is had at once or, with a pause for those who queued behind it, tried again; where
-- somebody has read it for seconds already, it is not tried. Under that lock nothing is read: the new partition has a check that says
-- what its bounds say, and a default partition that holds much has it left alone.
--
-- Called as a statement of its own: a transaction that goes on after it keeps everybody from the table, and is ended after a second.
--   kept: nothing was to go;   cleared;   dropped;   busy: it could not be had, and is as it was;   gone: there is none;
--   crowded: it is as it was, because the default partition, which would be read under the lock, holds more than 64 MB.
create function crossover.clear_partition(
    p_part text, p_kinds text[], p_keeps interval[], p_default interval, p_compared interval, p_tries integer, p_now timestamptz,
    out answer text, out stayed bigint, out went bigint)
language plpgsql as $$
declare
    v_part crossover.history_partitions;
    v_new  text := p_part || '_new';
    v_at   text;
    v_rows bigint;
begin
    stayed := 0; went := 0;
    perform crossover.agree_on_time(p_now);
    perform set_config('idle_in_transaction_session_timeout', '1s', true);
    if not pg_try_advisory_xact_lock(hashtextextended('crossover.history', 0)) then answer := 'busy'; return; end if;
    select * into v_part from crossover.history_partitions h where h.part = p_part;
    if not found then answer := 'gone'; return; end if;
    v_at := case v_part.parent when 'attempts' then 'ended_at' else 'created_at' end;
    -- Nobody queues behind this but who would change a row of that day; an autovacuum gives way after a second.
    perform set_config('lock_timeout', '2s', true);
    begin
        execute format('lock table crossover.%I in share mode', p_part);
    exception when lock_not_available then
        answer := 'busy';
        return;
    end;
    if crossover.read_for_long(v_part.parent, p_part) then answer := 'busy'; return; end if;
    -- Counted first: of most days nothing is to go when the retention of a rare kind passes, and then nothing is written.
    execute format('select count(*) from crossover.%I', p_part) into v_rows;
    execute format('select count(*) %s', crossover.what_stays(v_part.parent, p_part)) into stayed
    using p_kinds, p_keeps, p_default, v_part.from_at, v_part.to_at, p_compared;
    if stayed = v_rows and v_rows > 0 then
        answer := 'kept';
    elsif stayed > 0 and pg_relation_size(format('crossover.%I', v_part.parent || '_default')) > 64 * 1024 * 1024 then
        answer := 'crowded';
        return;
    else
        if stayed > 0 then
            execute format('create table crossover.%I (like crossover.%I including defaults including constraints including indexes)',
                v_new, v_part.parent);
            -- While it is empty: with it, nothing is read when the partition is attached.
            execute format('alter table crossover.%1$I add constraint of_its_days check (%2$I >= %3$L and %2$I < %4$L)',
                v_new, v_at, v_part.from_at, v_part.to_at);
            execute format('insert into crossover.%I select x.* %s', v_new, crossover.what_stays(v_part.parent, p_part))
            using p_kinds, p_keeps, p_default, v_part.from_at, v_part.to_at, p_compared;
            get diagnostics stayed = row_count;
        end if;
        perform set_config('lock_timeout', '200ms', true);
        for try in 1..greatest(p_tries, 1) loop
            begin
                execute format('alter table crossover.%I detach partition crossover.%I', v_part.parent, p_part);
                execute format('drop table crossover.%I', p_part);
                if stayed > 0 then
                    execute format('alter table crossover.%I rename to %I', v_new, p_part);
                    execute format('alter table crossover.%I attach partition crossover.%I %s', v_part.parent, p_part, v_part.bound);
                    execute format('alter table crossover.%I drop constraint of_its_days', p_part);
                end if;
                answer := case when stayed > 0 then 'cleared' else 'dropped' end;
                exit;
            exception when lock_not_available then
                answer := 'busy';
            end;
            perform pg_sleep(0.5);
        end loop;
        if answer = 'busy' then
            execute format('drop table if exists crossover.%I', v_new);
            return;
        end if;
        went := v_rows - stayed;
    end if;
    if answer = 'dropped' then
        delete from crossover.cleared_partitions c where c.part = p_part;
    else
        insert into crossover.cleared_partitions as c (part, cleared_at, kept) values (p_part, clock_timestamp(), stayed)
        on conflict (part) do update set cleared_at = excluded.cleared_at, kept = excluded.kept;
    end if;
end $$;

-- Deletes what has been kept long enough from a default partition, which holds rows only of days for which no partition was made in
-- time. Answers how many rows.
create function crossover.clear_default(
    p_parent text, p_kinds text[], p_keeps interval[], p_default interval, p_compared interval, p_now timestamptz) returns bigint
language plpgsql as $$
declare
    v_part text := p_parent || '_default';
    v_at   text := case p_parent when 'attempts' then 'ended_at' else 'created_at' end;
    v_to   timestamptz := now() - (select min(s.keep) from unnest(p_keeps || p_default) s (keep));
    v_rows bigint;
begin
    perform crossover.agree_on_time(p_now);
    execute format('delete from crossover.%1$I d where d.%2$I < $5 and d.ctid not in (select x.ctid %3$s)', v_part, v_at,
        crossover.what_stays(p_parent, v_part))
    using p_kinds, p_keeps, p_default, timestamptz 'epoch', v_to, p_compared;
    get diagnostics v_rows = row_count;
    return v_rows;
end $$;

-- Pins that go ---------------------------------------------------------------------------------------------------

-- Forgets pins that ended longer ago than they are kept, on p_blocks pages of their table from p_from on. A walk over the table
-- needs no index, which every pin would pay for when it is made and when it ends. p_compared: those of shadow and live are kept for
-- as long as the comparator's rows are. What had a copy on Temporal is kept for p_default at least, whatever its kind: its key, used again
-- while Temporal remembers the workflow of that name, would meet the old one.
--
-- A member of a series stays until everything before it has ended, too: the envelopes of later ones may wait up to it by its name.
create function crossover.forget_pins(
    p_from bigint, p_blocks integer, p_kinds text[], p_keeps interval[], p_default interval, p_compared interval,
    p_now timestamptz, out forgotten bigint, out next_block bigint)
language plpgsql as $$
declare
    v_pages bigint := pg_relation_size('crossover.pins') / current_setting('block_size')::bigint;
begin
    perform crossover.agree_on_time(p_now);
    with old as materialized (
        select p.id from crossover.pins p left join unnest(p_kinds, p_keeps) k (kind, keep) on k.kind = p.kind
        where p.ctid >= format('(%s,0)', p_from)::tid and p.ctid < format('(%s,0)', p_from + p_blocks)::tid
            and p.ended_at < now() - greatest(coalesce(k.keep, p_default), case when p.on_temporal then p_default end,
                case when p.stage in ('shadow', 'live') then p_compared end)
            and not exists (select from crossover.series s where s.series_id = p.series_id and s.head_no <= p.series_no)
            and not exists (select from crossover.placed_pins u where u.id = p.id)
            and not exists (select from crossover.observations o where o.id = p.id and o.look_at is not null)
        for update of p skip locked),
    gone as (delete from crossover.pins p using old where p.id = old.id returning p.id),
    resolutions as (delete from crossover.resolutions r using gone where r.id = gone.id)
    select count(*) into forgotten from gone;
    next_block := case when p_from + p_blocks < v_pages then p_from + p_blocks end;
end $$;

-- Orphans --------------------------------------------------------------------------------------------------------

-- Rows that belong to nothing, by what they are. What can't be needed by anybody is taken away, the rest is counted: it is a fault.
--   outbox, rehearsals, parked: there is no such pin, so nobody can deliver, mirror or resolve it. Taken away.
--   tasks_without_record: a place of a task whose record is not there. A claim ends it as failed.
--   pins_in_no_place: Postgres owns it, its turn has come, and nothing of it is anywhere: it would never run.
create function crossover.orphans()
returns table (what text, found bigint, taken_away boolean) language plpgsql as $$
begin
    return query
    with o as (delete from crossover.outbox o where not exists (select from crossover.pins p where p.id = o.id)
            and o.created_at < clock_timestamp() - interval '1 hour' returning 1),
        r as (delete from crossover.rehearsals r where not exists (select from crossover.pins p where p.id = r.id)
            and r.bound_at < clock_timestamp() - interval '1 hour' returning 1),
        k as (delete from crossover.parked k where not exists (select from crossover.pins p where p.id = k.id)
            and k.since < clock_timestamp() - interval '1 hour' returning 1)
    select 'outbox', (select count(*) from o), true union all
    select 'rehearsals', (select count(*) from r), true union all
    select 'parked', (select count(*) from k), true;
    return query
    select 'tasks_without_record', (
        select count(*) from crossover.unended_tasks u
        where u.created_at < clock_timestamp() - interval '1 hour'
            and not exists (select from crossover.tasks t where t.id = u.id and t.created_at = u.created_at)), false;
    return query
    select 'pins_in_no_place', (
        select count(*) from crossover.pins p left join crossover.series s on s.series_id = p.series_id
        where p.ended_at is null and p.owner = 'postgres' and p.on_postgres and p.conflict is null
            and p.run_at < clock_timestamp() - interval '1 hour' and (p.series_id is null or s.head_no = p.series_no)
            and not exists (select from crossover.placed_pins u where u.id = p.id)), false;
end $$;
