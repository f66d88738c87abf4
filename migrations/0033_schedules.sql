-- Schedules: work that comes again and again. docs/schedules.md is the page for people.
--
-- Whoever fires a schedule holds its row from the look to the commit that has its runs and its next time, so changes,
-- pauses and other schedulers come before or after, never between.

create table crossover.schedules (
    id              uuid primary key default gen_random_uuid(),
    account         text not null,
    name            text not null,
    kind            text not null,
    series          text,
    grp             text,
    priority        smallint not null check (priority between -100 and 100),
    payload         json not null,
    policy          json not null,
    spec            json not null,
    overlap         text not null check (overlap in ('skip', 'queue_one', 'queue_all', 'cancel_old', 'after_last')),
    catch_up        text not null check (catch_up in ('latest', 'all')),
    window_ms       bigint not null check (window_ms > 0),
    jitter_ms       bigint not null check (jitter_ms >= 0),
    version         bigint not null default 1,
    created_at      timestamptz not null default clock_timestamp(),
    changed_at      timestamptz not null default clock_timestamp(),
    changed_by      text not null,
    paused_at       timestamptz,
    paused_by       text,
    pause_reason    text,
    -- What becomes of it.
    wake_at         timestamptz,
    nominal_at      timestamptz,
    last_nominal_at timestamptz,
    last_run        uuid,
    last_run_at     timestamptz,
    unended         uuid[] not null default '{}',
    triggers        text[] not null default '{}',
    failures        integer not null default 0,
    trouble         text,
    unique (account, name),
    check ((paused_at is null) = (pause_reason is null))
) with (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.05);
comment on table crossover.schedules is 'Work that comes again and again.';
comment on column crossover.schedules.version is 'Counts what people changed.';
comment on column crossover.schedules.wake_at is 'When a scheduler looks at it next. Null: never, as it stands.';
comment on column crossover.schedules.nominal_at is 'The next nominal time; its jitter comes on top. Null: none, or it counts from the end of the last run.';
comment on column crossover.schedules.unended is 'Runs that had not ended when it was last looked at; nothing else of it is unended.';
comment on column crossover.schedules.triggers is 'Tokens of runs that were asked for and are not enqueued yet.';
comment on column crossover.schedules.trouble is 'Why it could not be fired, since when it could not.';
create index schedules_wake on crossover.schedules (wake_at) where wake_at is not null;
create index schedules_paused on crossover.schedules (paused_at) where paused_at is not null;

-- What became of each nominal time and each trigger. Kept for schedules.keep; the run itself is an interaction.
create table crossover.schedule_runs (
    no          bigint generated always as identity primary key,
    schedule_id uuid not null,
    at          timestamptz not null default clock_timestamp(),
    nominal_at  timestamptz,
    nominal_to  timestamptz,
    times       bigint not null default 1,
    outcome     text not null check (outcome in ('enqueued', 'skipped', 'failed')),
    reason      text,
    interaction uuid,
    key         text
);
comment on table crossover.schedule_runs is 'What became of a schedule''s nominal times and triggers.';
comment on column crossover.schedule_runs.nominal_to is 'The last of several times in a row that were skipped for one reason.';
comment on column crossover.schedule_runs.times is 'How many; by a clock, 100 may be more.';
create index schedule_runs_of on crossover.schedule_runs (schedule_id, no desc);
create index schedule_runs_at on crossover.schedule_runs (at);

-- Takes what is due, longest first, for the transaction; what another scheduler has is left out, and what comes after
-- p_bytes of payloads. With each, the runs that are unended by now, and those of them that nobody has cancelled yet.
create function crossover.take_schedules(p_limit integer, p_bytes bigint)
returns table (schedule crossover.schedules, now timestamptz, unended_now uuid[], uncancelled uuid[], last_end timestamptz)
language plpgsql as $$
declare
    -- In a variable, so that the index knows where to stop.
    v_now timestamptz := clock_timestamp();
    v_ids uuid[];
begin
    with due as materialized (
        select s.id from crossover.schedules s where s.wake_at <= v_now order by s.wake_at limit p_limit
        for update skip locked)
    select array_agg(d.id) into v_ids from due d;
    -- Looked at by a statement of its own: the one that locks may see a row that was committed after it began, and would see
    -- the pins as they were before, without that row's last run.
    v_now := clock_timestamp();
    return query with due as materialized (
        select s as it, sum(octet_length(s.payload::text)) over (order by s.wake_at, s.id) - octet_length(s.payload::text) as before
        from crossover.schedules s where s.id = any (v_ids))
    select d.it, v_now, coalesce(u.ids, '{}'), coalesce(u.uncancelled, '{}'),
        case when (d.it).overlap = 'after_last' then (select l.ended_at from crossover.pins l where l.id = (d.it).last_run) end
    from due d
    left join lateral (
        select array_agg(p.id order by p.created_at) as ids,
            array_agg(p.id order by p.created_at) filter (where p.cancel_requested_at is null) as uncancelled
        from crossover.pins p where p.id = any ((d.it).unended) and p.ended_at is null) u on cardinality((d.it).unended) > 0
    where d.before < p_bytes
    order by (d.it).wake_at, (d.it).id;
end $$;

-- Pins runs, all or none, in the given order; see crossover.pin. Callers sort by series, in which all of them take their locks.
create function crossover.pin_runs(
    p_accounts text[], p_keys text[], p_kinds text[], p_stages text[], p_flag_revisions text[], p_series text[],
    p_series_ids uuid[], p_grps text[], p_priorities smallint[], p_payload_hashes bytea[], p_payloads text[], p_policies text[],
    p_weights integer[], p_grace interval)
returns table (created boolean, direct boolean, pin crossover.pins, behind uuid[])
language plpgsql as $$
#variable_conflict use_column
declare
    v_pinned record;
    v_now    timestamptz;
    v_ids    uuid[] := array(select crossover.interaction_id(g.account, g.key)
        from unnest(p_accounts, p_keys) with ordinality as g (account, key, n) order by g.n);
begin
    -- Many runs of accounts that Postgres alone works for, each of a series of its own, cost one statement a table and not one a run.
    if p_stages <@ array['complete'] and not exists (select from unnest(p_series_ids) s (id) where s.id is null)
        and (select count(distinct s.id) from unnest(p_series_ids) s (id)) = cardinality(p_keys)
    then
        -- Locked first and timed then, as crossover.pin does.
        lock table crossover.pins in row exclusive mode;
        v_now := clock_timestamp();
        perform pg_advisory_xact_lock_shared(l.key)
        from (select distinct crossover.account_lock(a.account) as key from unnest(p_accounts) a (account) order by 1) l;
        if not exists (select from crossover.pins p where p.id = any (v_ids))
            and not exists (select from unnest(p_accounts) g (account)
                left join crossover.accounts a on a.account = g.account where a.state is distinct from 'armed')
        then
            insert into crossover.series (series_id, account, kind, series)
            select g.id, g.account, g.kind, g.series
            from unnest(p_series_ids, p_accounts, p_kinds, p_series) as g (id, account, kind, series) order by g.id
            on conflict do nothing;
            -- An id that somebody pins meanwhile fails all of it; the next try finds the pin.
            with given as materialized (
                select * from unnest(v_ids, p_accounts, p_keys, p_kinds, p_flag_revisions, p_series, p_series_ids, p_grps,
                    p_priorities, p_payload_hashes, p_payloads, p_policies, p_weights)
                    as g (id, account, key, kind, flag_revision, series, series_id, grp, priority, payload_hash, payload, policy, weight)),
            locked as materialized (
                select s.series_id, s.last_no + 1 as no from crossover.series s where s.series_id = any (p_series_ids)
                order by s.series_id for update),
            pinned as (
                insert into crossover.pins (id, created_at, run_at, series_id, series_no, weight, priority, on_temporal, on_postgres,
                    stage, owner, account, kind, key, series, grp, flag_revision, payload_hash)
                select g.id, v_now, v_now, g.series_id, l.no, g.weight, g.priority, false, true,
                    'complete', 'postgres', g.account, g.kind, g.key, g.series, g.grp, g.flag_revision, g.payload_hash
                from given g join locked l on l.series_id = g.series_id),
            paid as (
                insert into crossover.payloads (id, created_at, payload, policy)
                select g.id, v_now, g.payload::json, g.policy::json from given g)
            update crossover.series s set last_no = l.no from locked l where s.series_id = l.series_id;
            perform crossover.place(p.id, v_now, 1, p.priority, true, p.grp)
            from unnest(v_ids) with ordinality as g (id, n)
            join crossover.pins p on p.id = g.id join crossover.series s on s.series_id = p.series_id
            where p.series_no = s.head_no order by g.n;
            return query select true, false, p, '{}'::uuid[]
                from unnest(v_ids) with ordinality as g (id, n) join crossover.pins p on p.id = g.id order by g.n;
            return;
        end if;
    end if;
    for n in 1 .. cardinality(p_keys) loop
        select * into v_pinned from crossover.pin(
            p_accounts[n], p_keys[n], p_kinds[n], p_stages[n], p_flag_revisions[n], p_series[n], p_series_ids[n], p_grps[n],
            p_priorities[n], null, p_payload_hashes[n], p_payloads[n]::json, p_policies[n]::json, p_weights[n], p_grace);
        created := v_pinned.created;
        direct := v_pinned.direct;
        pin := v_pinned.pin;
        behind := v_pinned.behind;
        return next;
    end loop;
end $$;

-- Writes down what became of schedules that this transaction has taken.
create function crossover.settle_schedules(p_schedules jsonb, p_runs jsonb) returns void
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
    insert into crossover.schedule_runs (schedule_id, nominal_at, nominal_to, times, outcome, reason, interaction, key)
    select r.schedule_id, r.nominal_at, r.nominal_to, r.times, r.outcome, r.reason, r.interaction, r.key
    from jsonb_to_recordset(p_runs) as r (schedule_id uuid, nominal_at timestamptz, nominal_to timestamptz, times bigint,
        outcome text, reason text, interaction uuid, key text);
end $$;

-- Looks at schedules that can't be fired later: after a second first, after five minutes at most.
create function crossover.postpone_schedules(p_ids uuid[], p_troubles text[]) returns void
language sql as $$
    update crossover.schedules s
    set failures = s.failures + 1, trouble = t.trouble,
        wake_at = clock_timestamp() + least(interval '5 minutes', interval '1 second' * 2 ^ least(s.failures, 9))
    from unnest(p_ids, p_troubles) as t (id, trouble)
    where s.id = t.id and s.wake_at is not null
$$;

-- Asks for a run now, under a token that is taken once. `asked`, `known`, `full`, or null for no such schedule.
create function crossover.trigger_schedule(p_id uuid, p_token text, p_most integer) returns text
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
    return 'asked';
end $$;

-- Forgets what became of times that are older than p_keep, at most p_limit. Returns how many.
create function crossover.forget_schedule_runs(p_keep interval, p_limit integer) returns bigint
language plpgsql as $$
declare
    v_before timestamptz := clock_timestamp() - p_keep;
    v_rows   bigint;
begin
    delete from crossover.schedule_runs r where r.no in (
        select o.no from crossover.schedule_runs o where o.at < v_before order by o.at limit p_limit);
    get diagnostics v_rows = row_count;
    return v_rows;
end $$;
