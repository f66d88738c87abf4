-- Who tells Temporal of a schedule has it alone until he has said what came of it, and nothing that comes late is taken for what is.
-- docs/schedules.md says what can go wrong.

-- One for all schedules, so that no wish of one that was forgotten and is wanted again is taken for one of before. It begins with the
-- time, so that a database that was made anew is ahead of what another has told.
create sequence crossover.schedule_wishes;
select setval('crossover.schedule_wishes', greatest(extract(epoch from clock_timestamp())::bigint,
    (select coalesce(max(greatest(wish, done)), 0) from crossover.schedule_mirrors)));

alter table crossover.schedule_mirrors
    alter column wish set default nextval('crossover.schedule_wishes'),
    add column lease bigint,
    add column leased_until timestamptz,
    add column forgetting_at timestamptz,
    add column hurried boolean not null default true;
comment on column crossover.schedule_mirrors.lease is 'Who tells Temporal of it now.';
comment on column crossover.schedule_mirrors.leased_until is 'Nobody else does before then.';
comment on column crossover.schedule_mirrors.forgetting_at is 'When somebody was last to make Temporal forget it: that may arrive late.';
comment on column crossover.schedule_mirrors.hurried is 'It is told before what a flip of many accounts has changed.';

-- What Temporal lost by itself makes no tick that would tell: each is looked at once a day, also those that were told before 0045 said so.
update crossover.schedule_mirrors set due_at = clock_timestamp() + interval '1 day' * random() where due_at is null;

create or replace function crossover.mirror_schedule() returns trigger
language plpgsql as $$
begin
    update crossover.schedule_mirrors m
    set wanted = m.wanted and tg_op <> 'DELETE', wish = greatest(nextval('crossover.schedule_wishes'), m.wish + 1), hurried = true,
        due_at = greatest(clock_timestamp(), m.leased_until), behind_since = coalesce(m.behind_since, clock_timestamp())
    where m.schedule_id = old.id;
    return null;
end $$;
-- Whatever people change, by whatever means; the scheduler changes none of these.
drop trigger schedules_mirrored on crossover.schedules;
create trigger schedules_mirrored
after update of version, kind, series, grp, priority, payload, policy, spec, overlap, catch_up, window_ms, jitter_ms, paused_at, pause_reason
    or delete on crossover.schedules
for each row execute function crossover.mirror_schedule();

-- Whether all routers that live decide by this: of two minds, the one that wants a schedule on Temporal has its way, and nothing goes there
-- and off again and again. A router that has been silent for a minute has no say.
create function crossover.routers_agree(p_revision text, p_overrides bigint[]) returns boolean
language sql stable as $$
    select not exists (
        select from crossover.routers r
        where r.ended_at is null and 'router' = any (r.roles) and r.beat_at > clock_timestamp() - interval '1 minute'
            and (r.revision <> p_revision or not (r.overrides <@ p_overrides and r.overrides @> p_overrides)))
$$;

-- As before, in one order, so that two routers that do so at once don't wait for each other; what people have changed goes first.
create or replace function crossover.want_schedule_mirrors(p_accounts text[], p_kinds text[], p_wanted boolean[], p_limit integer)
returns bigint
language plpgsql as $$
declare
    v_made    bigint;
    v_changed bigint;
begin
    insert into crossover.schedule_mirrors (schedule_id, wanted, hurried)
    select s.id, true, false from unnest(p_accounts, p_kinds, p_wanted) as g (account, kind, wanted)
    join crossover.schedules s on s.account = g.account and s.kind = g.kind
    where g.wanted and not exists (select from crossover.schedule_mirrors m where m.schedule_id = s.id)
    order by s.id limit p_limit
    on conflict do nothing;
    get diagnostics v_made = row_count;
    with wrong as materialized (
        select m.schedule_id from crossover.schedule_mirrors m
        join crossover.schedules s on s.id = m.schedule_id
        join unnest(p_accounts, p_kinds, p_wanted) as g (account, kind, wanted) on g.account = s.account and g.kind = s.kind
        where m.wanted <> g.wanted limit p_limit for update of m skip locked)
    update crossover.schedule_mirrors m
    set wanted = not m.wanted, wish = greatest(nextval('crossover.schedule_wishes'), m.wish + 1), hurried = false,
        due_at = greatest(clock_timestamp(), m.leased_until), behind_since = coalesce(m.behind_since, clock_timestamp())
    from wrong w where m.schedule_id = w.schedule_id;
    get diagnostics v_changed = row_count;
    return greatest(v_made, v_changed);
end $$;

-- Takes what Temporal is to be told, for p_lease: who dies with it has told nothing, and another one does then. Nobody does before. A payload
-- of more than p_carried bytes is left out (null).
drop function crossover.take_schedule_mirrors(integer, interval);
create function crossover.take_schedule_mirrors(p_limit integer, p_lease interval, p_carried integer default null)
returns table (mirror crossover.schedule_mirrors, schedule crossover.schedules, now timestamptz)
language plpgsql as $$
declare
    v_now   timestamptz := clock_timestamp();
    v_lease bigint := nextval('crossover.schedule_wishes');
    v_ids   uuid[];
begin
    with hurried as materialized (
        select m.schedule_id from crossover.schedule_mirrors m where m.hurried and m.due_at <= v_now order by m.due_at limit p_limit
        for update skip locked),
    others as materialized (
        select m.schedule_id from crossover.schedule_mirrors m where not m.hurried and m.due_at <= v_now order by m.due_at
        limit p_limit - (select count(*) from hurried)
        for update skip locked),
    taken as (
        update crossover.schedule_mirrors m
        set due_at = v_now + p_lease, leased_until = v_now + p_lease, lease = v_lease,
            forgetting_at = case when m.wanted then m.forgetting_at else v_now end
        from (select h.schedule_id from hurried h union all select o.schedule_id from others o) d where m.schedule_id = d.schedule_id
        returning m.schedule_id)
    select array_agg(t.schedule_id) into v_ids from taken t;
    -- By a statement of its own, with one snapshot: a newer wish with an older schedule would never be mended.
    return query select m, case when octet_length(s.payload::text) > p_carried then json_populate_record(s, '{"payload": null}') else s end, v_now
    from crossover.schedule_mirrors m left join crossover.schedules s on s.id = m.schedule_id
    where m.schedule_id = any (v_ids) order by m.hurried desc, m.schedule_id;
end $$;

-- Temporal was seen to have this wish, and to have launched these triggers; at p_again the times that it has run low. False: nobody wants it
-- any longer, and it is to be doubted what Temporal has. Where another has taken it since, the same: what was done so late may have undone
-- what that one did, so it is only looked at again. (A version without leases gives none.)
drop function crossover.schedule_mirrored(uuid, bigint, timestamptz, text[]);
create function crossover.schedule_mirrored(p_id uuid, p_wish bigint, p_again timestamptz, p_triggers text[], p_lease bigint default null)
returns boolean
language plpgsql as $$
declare
    -- What is sent has arrived, or never does, after so long.
    c_arrives constant interval := '15 seconds';
    v_now     timestamptz := clock_timestamp();
    v_mirror  crossover.schedule_mirrors;
    v_left    text[];
begin
    select * into v_mirror from crossover.schedule_mirrors m where m.schedule_id = p_id for update;
    if not found then return false; end if;
    if p_lease <> v_mirror.lease or p_lease is not null and v_mirror.lease is null then
        update crossover.schedule_mirrors m set due_at = least(m.due_at, greatest(v_now, m.leased_until)) where m.schedule_id = p_id;
        return true;
    end if;
    v_left := array(select t from unnest(v_mirror.triggers) t where t <> all (p_triggers));
    if v_mirror.wish = p_wish and (not v_mirror.wanted or not exists (select from crossover.schedules s where s.id = p_id)) then
        -- Before the row goes it is looked once more, for whatever was still on its way to Temporal.
        if v_mirror.behind_since is null then
            delete from crossover.schedule_mirrors m where m.schedule_id = p_id;
            return true;
        end if;
        p_again := v_now + c_arrives;
        v_left := '{}';
    end if;
    update crossover.schedule_mirrors m
    set done = greatest(m.done, p_wish), tries = 0, error = null, told_at = v_now, triggers = v_left,
        lease = null, leased_until = null, hurried = m.hurried and m.wish > p_wish,
        due_at = case when m.wish > p_wish or cardinality(v_left) > 0 then v_now
                      else least(p_again, v_now + interval '1 day' * (0.5 + random()),
                          case when m.forgetting_at > v_now - 4 * c_arrives then v_now + c_arrives end) end,
        behind_since = case when m.wish > p_wish then m.behind_since end
    where m.schedule_id = p_id;
    return true;
end $$;

-- Temporal could not be told; it is tried again, later each time, or at once where p_error is null: nobody has tried. p_has is what it has
-- where that is ahead of what we know, as after a backup was restored: what we want is newer than that.
drop function crossover.schedule_not_mirrored(uuid, bigint, text);
create function crossover.schedule_not_mirrored(p_id uuid, p_has bigint, p_error text, p_lease bigint default null) returns void
language sql as $$
    update crossover.schedule_mirrors m
    set tries = case when p_error is null then m.tries else m.tries + 1 end, error = coalesce(p_error, m.error),
        wish = case when p_has > m.wish then greatest(nextval('crossover.schedule_wishes'), p_has + 1) else m.wish end,
        behind_since = case when p_has > m.wish then coalesce(m.behind_since, clock_timestamp()) else m.behind_since end,
        lease = null, leased_until = null,
        due_at = clock_timestamp() + case when p_error is null then interval '0'
            else least(interval '1 minute', interval '250 milliseconds' * 2 ^ least(m.tries, 8)) end
    where m.schedule_id = p_id and (p_lease is null or m.lease = p_lease)
$$;

-- As before; nobody who tells Temporal just now is disturbed, and what it can't be told is tried no sooner.
create or replace function crossover.doubt_schedule_mirror(p_id uuid) returns void
language sql as $$
    insert into crossover.schedule_mirrors as m (schedule_id, wanted) values (p_id, false)
    on conflict (schedule_id) do update
    set due_at = case when m.tries > 0 then m.due_at else least(m.due_at, greatest(clock_timestamp(), m.leased_until)) end
$$;

-- As before, and waits for no longer than a caller would: who waits has a connection that callers need.
create or replace function crossover.take_schedule(p_id uuid)
returns table (schedule crossover.schedules, now timestamptz, unended_now uuid[], uncancelled uuid[], last_end timestamptz,
    wish bigint)
language plpgsql set lock_timeout = '250ms' as $$
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

-- Notes when Temporal's scheduler came with a time that ours had come with before, the first time of those that were skipped together. Only
-- the last rows are looked at.
create or replace function crossover.note_schedule_tick(p_id uuid, p_nominal timestamptz, p_at timestamptz) returns void
language sql as $$
    update crossover.schedule_runs r set temporal_at = p_at
    where r.no = (
        select l.no from (select o.no, o.nominal_at, o.nominal_to, o.temporal_at from crossover.schedule_runs o
                          where o.schedule_id = p_id order by o.no desc limit 100) l
        where p_nominal between l.nominal_at and coalesce(l.nominal_to, l.nominal_at) and l.temporal_at is null
        order by l.no limit 1)
$$;

-- As before; see the trigger of the table.
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
    set triggers = m.triggers || p_token, due_at = greatest(clock_timestamp(), m.leased_until), hurried = true
    where m.schedule_id = p_id and m.wanted and cardinality(m.triggers) < p_most;
    return 'asked';
end $$;
