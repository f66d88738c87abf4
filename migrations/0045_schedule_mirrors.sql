-- Schedules of accounts that are not complete live on both sides. crossover.schedules is what counts; this is what Temporal is to
-- have of it, and what it has. docs/schedules.md says what can go wrong between the two.

create table crossover.schedule_mirrors (
    schedule_id  uuid primary key,
    wanted       boolean not null,
    wish         bigint not null default 1,
    done         bigint not null default 0,
    due_at       timestamptz default clock_timestamp(),
    behind_since timestamptz default clock_timestamp(),
    told_at      timestamptz,
    tries        integer not null default 0,
    error        text,
    triggers     text[] not null default '{}'
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
comment on table crossover.schedule_mirrors is 'What Temporal is to have of a schedule, and has. It outlives its schedule until Temporal has forgotten that.';
comment on column crossover.schedule_mirrors.wanted is 'False: Temporal is to have nothing of it.';
comment on column crossover.schedule_mirrors.wish is 'Counts what Temporal was to be told.';
comment on column crossover.schedule_mirrors.done is 'The wish that Temporal was seen to have.';
comment on column crossover.schedule_mirrors.due_at is 'When it is told next. Null: nothing is to be told.';
comment on column crossover.schedule_mirrors.behind_since is 'Since when Temporal has not what it is to have. Null: it has.';
comment on column crossover.schedule_mirrors.error is 'Why it could not be told, in so many tries.';
comment on column crossover.schedule_mirrors.triggers is 'Tokens of runs that Temporal is to launch.';
create index schedule_mirrors_due on crossover.schedule_mirrors (due_at) where due_at is not null;
create index schedule_mirrors_behind on crossover.schedule_mirrors (behind_since) where behind_since is not null;

alter table crossover.schedule_runs add column ticked_by text, add column temporal_at timestamptz;
comment on column crossover.schedule_runs.ticked_by is 'Whose scheduler came first with it: postgres or temporal. Null in rows of an older version.';
comment on column crossover.schedule_runs.temporal_at is 'When Temporal''s scheduler came with it. Null: not, or the schedule was on Postgres alone.';

-- Whoever changes or deletes a schedule, and by whatever means: in the same transaction Temporal is to be told. Lock order: the
-- schedule, then its mirror.
create function crossover.mirror_schedule() returns trigger
language plpgsql as $$
begin
    update crossover.schedule_mirrors m
    set wanted = m.wanted and tg_op <> 'DELETE', wish = m.wish + 1, due_at = clock_timestamp(),
        behind_since = coalesce(m.behind_since, clock_timestamp())
    where m.schedule_id = old.id;
    return null;
end $$;
create trigger schedules_mirrored after update of version or delete on crossover.schedules
for each row execute function crossover.mirror_schedule();

-- Says of which accounts and kinds Temporal is to have the schedules. Returns how many it changed; ask again while that is p_limit.
create function crossover.want_schedule_mirrors(p_accounts text[], p_kinds text[], p_wanted boolean[], p_limit integer) returns bigint
language plpgsql as $$
declare
    v_made    bigint;
    v_changed bigint;
begin
    insert into crossover.schedule_mirrors (schedule_id, wanted)
    select s.id, true from unnest(p_accounts, p_kinds, p_wanted) as g (account, kind, wanted)
    join crossover.schedules s on s.account = g.account and s.kind = g.kind
    where g.wanted and not exists (select from crossover.schedule_mirrors m where m.schedule_id = s.id)
    limit p_limit
    on conflict do nothing;
    get diagnostics v_made = row_count;
    with wrong as materialized (
        select m.schedule_id from crossover.schedule_mirrors m
        join crossover.schedules s on s.id = m.schedule_id
        join unnest(p_accounts, p_kinds, p_wanted) as g (account, kind, wanted) on g.account = s.account and g.kind = s.kind
        where m.wanted <> g.wanted limit p_limit for update of m skip locked)
    update crossover.schedule_mirrors m
    set wanted = not m.wanted, wish = m.wish + 1, due_at = clock_timestamp(), behind_since = coalesce(m.behind_since, clock_timestamp())
    from wrong w where m.schedule_id = w.schedule_id;
    get diagnostics v_changed = row_count;
    return greatest(v_made, v_changed);
end $$;

-- Takes what Temporal is to be told, for p_lease: who dies with it has told nothing, and another one does then.
create function crossover.take_schedule_mirrors(p_limit integer, p_lease interval)
returns table (mirror crossover.schedule_mirrors, schedule crossover.schedules, now timestamptz)
language plpgsql as $$
declare
    v_now timestamptz := clock_timestamp();
    v_ids uuid[];
begin
    with due as materialized (
        select m.schedule_id from crossover.schedule_mirrors m where m.due_at <= v_now order by m.due_at limit p_limit
        for update skip locked),
    taken as (
        update crossover.schedule_mirrors m set due_at = v_now + p_lease from due d where m.schedule_id = d.schedule_id
        returning m.schedule_id)
    select array_agg(t.schedule_id) into v_ids from taken t;
    -- By a statement of its own, with one snapshot: a newer wish with an older schedule would never be mended.
    return query select m, s, v_now
    from crossover.schedule_mirrors m left join crossover.schedules s on s.id = m.schedule_id
    where m.schedule_id = any (v_ids) order by m.schedule_id;
end $$;

-- Temporal was seen to have this wish, and to have launched these triggers; at p_again the times that it has run low. False: nobody wants it
-- any longer, and it is to be doubted what Temporal has.
create function crossover.schedule_mirrored(p_id uuid, p_wish bigint, p_again timestamptz, p_triggers text[]) returns boolean
language plpgsql as $$
begin
    delete from crossover.schedule_mirrors m where m.schedule_id = p_id and m.wish = p_wish
        and (not m.wanted or not exists (select from crossover.schedules s where s.id = p_id));
    if found then return true; end if;
    update crossover.schedule_mirrors m
    set done = greatest(m.done, p_wish), tries = 0, error = null, told_at = clock_timestamp(),
        triggers = array(select t from unnest(m.triggers) t where t <> all (p_triggers)),
        due_at = case when m.wish > p_wish or exists (select from unnest(m.triggers) t where t <> all (p_triggers))
                      then clock_timestamp()
                      -- What Temporal lost by itself, in a restore or by hand, makes no tick that would tell: it is looked at once a day.
                      else least(p_again, clock_timestamp() + interval '1 day' * (0.5 + random())) end,
        behind_since = case when m.wish > p_wish then m.behind_since end
    where m.schedule_id = p_id;
    return found;
end $$;

-- Temporal could not be told; it is tried again, later each time. p_wish is what it has where that is ahead of what we know, as after a
-- backup was restored: what we want is newer than that.
create function crossover.schedule_not_mirrored(p_id uuid, p_wish bigint, p_error text) returns void
language sql as $$
    update crossover.schedule_mirrors m
    set tries = m.tries + 1, error = p_error, wish = greatest(m.wish, p_wish + 1),
        behind_since = case when m.done < greatest(m.wish, p_wish + 1) then coalesce(m.behind_since, clock_timestamp()) else m.behind_since end,
        due_at = clock_timestamp() + least(interval '1 minute', interval '250 milliseconds' * 2 ^ least(m.tries, 8))
    where m.schedule_id = p_id
$$;

-- Temporal's scheduler came with what it should not have: it is looked at again what it has. Of what it is to have nothing of, it is to
-- forget what it has.
create function crossover.doubt_schedule_mirror(p_id uuid) returns void
language sql as $$
    insert into crossover.schedule_mirrors as m (schedule_id, wanted) values (p_id, false)
    on conflict (schedule_id) do update set due_at = least(m.due_at, clock_timestamp())
$$;

-- Takes one schedule for the transaction, due or not, and waits for whoever has it. With it, the wish that Temporal is to have of it; null:
-- it is to have nothing.
create function crossover.take_schedule(p_id uuid)
returns table (schedule crossover.schedules, now timestamptz, unended_now uuid[], uncancelled uuid[], last_end timestamptz,
    wish bigint)
language plpgsql as $$
begin
    perform from crossover.schedules s where s.id = p_id for update;
    -- By another statement, as crossover.take_schedules does.
    return query
    select s, clock_timestamp(), coalesce(u.ids, '{}'), coalesce(u.uncancelled, '{}'),
        case when s.overlap = 'after_last' then (select l.ended_at from crossover.pins l where l.id = s.last_run) end,
        (select m.wish from crossover.schedule_mirrors m where m.schedule_id = p_id and m.wanted)
    from crossover.schedules s
    left join lateral (
        select array_agg(p.id order by p.created_at) as ids,
            array_agg(p.id order by p.created_at) filter (where p.cancel_requested_at is null) as uncancelled
        from crossover.pins p where p.id = any (s.unended) and p.ended_at is null) u on cardinality(s.unended) > 0
    where s.id = p_id;
end $$;

-- Notes when Temporal's scheduler came with a time that ours had come with before. Only the last rows are looked at.
create function crossover.note_schedule_tick(p_id uuid, p_nominal timestamptz, p_at timestamptz) returns void
language sql as $$
    update crossover.schedule_runs r set temporal_at = p_at
    where r.no = (
        select l.no from (select o.no, o.nominal_at, o.temporal_at from crossover.schedule_runs o
                          where o.schedule_id = p_id order by o.no desc limit 100) l
        where l.nominal_at = p_nominal and l.temporal_at is null order by l.no limit 1)
$$;

create or replace function crossover.settle_schedules(p_schedules jsonb, p_runs jsonb) returns void
language plpgsql
-- By the primary key, whatever the planner thinks of how many they are.
set enable_hashjoin = off set enable_mergejoin = off set enable_seqscan = off as $$
begin
    update crossover.schedules s
    set wake_at = m.wake_at, nominal_at = m.nominal_at, last_nominal_at = coalesce(m.last_nominal_at, s.last_nominal_at),
        last_run = coalesce(m.last_run, s.last_run),
        last_run_at = case when m.last_run is null then s.last_run_at else clock_timestamp() end,
        unended = m.unended, triggers = m.triggers, failures = 0, trouble = null
    from jsonb_to_recordset(p_schedules) as m (id uuid, wake_at timestamptz, nominal_at timestamptz, last_nominal_at timestamptz,
        last_run uuid, unended uuid[], triggers text[])
    where s.id = m.id;
    insert into crossover.schedule_runs (schedule_id, nominal_at, nominal_to, times, outcome, reason, interaction, key, ticked_by, temporal_at)
    select r.schedule_id, r.nominal_at, r.nominal_to, r.times, r.outcome, r.reason, r.interaction, r.key, r.ticked_by,
        case when r.ticked_by = 'temporal' then clock_timestamp() end
    from jsonb_to_recordset(p_runs) as r (schedule_id uuid, nominal_at timestamptz, nominal_to timestamptz, times bigint,
        outcome text, reason text, interaction uuid, key text, ticked_by text);
end $$;

-- As before, and Temporal is to launch it as well where it has the schedule: whoever comes first, under one key.
create or replace function crossover.trigger_schedule(p_id uuid, p_token text, p_most integer) returns text
language plpgsql as $$
declare
    v_schedule crossover.schedules;
begin
    select * into v_schedule from crossover.schedules where id = p_id for update;
    if not found then return null; end if;
    if p_token = any (v_schedule.triggers)
        or exists (select from crossover.pins p
                   where p.id = crossover.interaction_id(v_schedule.account, format('schedule:%s!%s', p_id, p_token))) then
        return 'known';
    end if;
    if cardinality(v_schedule.triggers) >= p_most then return 'full'; end if;
    update crossover.schedules set triggers = triggers || p_token, wake_at = least(wake_at, clock_timestamp()) where id = p_id;
    update crossover.schedule_mirrors m
    set triggers = m.triggers || p_token, due_at = clock_timestamp()
    where m.schedule_id = p_id and m.wanted and cardinality(m.triggers) < p_most;
    return 'asked';
end $$;
