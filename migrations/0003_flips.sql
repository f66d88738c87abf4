-- Who routes, where each account and kind stands, every change of that, and what operators asked for.
--
-- Written by module `flips` alone. A router keeps its row in `routers` alive, says there by which revision it decides,
-- and acknowledges the flips that commands wait for. `standings` is what routers last saw; a change of it is a row in
-- `decisions`, whoever made it.

-- Routers ----------------------------------------------------------------------------------------------------

create table crossover.routers (
    id         uuid primary key,
    name       text not null,
    started_at timestamptz not null default clock_timestamp(),
    beat_at    timestamptz not null default clock_timestamp(),
    revision   text not null,
    seen_at    timestamptz not null default clock_timestamp(),
    good_at    timestamptz not null default clock_timestamp(),
    overrides  bigint[] not null default '{}',
    ended_at   timestamptz
) with (fillfactor = 50);
comment on table crossover.routers is 'Every process that decides stages. It registers before it takes traffic, beats each second, and says when it ends.';
comment on column crossover.routers.revision is 'The flags in force there.';
comment on column crossover.routers.seen_at is 'Since when.';
comment on column crossover.routers.good_at is 'When their source last said so; the clock is the router''s.';
comment on column crossover.routers.overrides is 'The overrides in force there.';
comment on column crossover.routers.ended_at is 'When it deregistered, or an operator said that its process is gone.';

-- Flips ------------------------------------------------------------------------------------------------------

-- What an operator asked for by a command, written before the change.
create table crossover.flips (
    id         uuid primary key default gen_random_uuid(),
    at         timestamptz not null default clock_timestamp(),
    until_at   timestamptz not null,
    account    text not null,
    kind       text,
    from_stage text not null,
    to_stage   text not null check (to_stage in ('off', 'shadow', 'live', 'complete')),
    kinds      text[] not null,
    froms      text[] not null check (cardinality(froms) = cardinality(kinds)),
    revision   text,
    who        text not null,
    why        text
);
comment on column crossover.flips.until_at is 'Routers acknowledge it until then.';
comment on column crossover.flips.kinds is 'All that a router must decide as asked before it acknowledges; empty: every kind without a name here.';
comment on column crossover.flips.froms is 'Where each of them stood before.';
comment on column crossover.flips.revision is 'What the change will be called, where that is known beforehand.';
create index flips_until on crossover.flips (until_at);
create index flips_account on crossover.flips (account, at);

-- A router decides as the flip wants.
create table crossover.flip_acks (
    flip     uuid not null references crossover.flips on delete cascade,
    router   uuid not null references crossover.routers on delete cascade,
    at       timestamptz not null default clock_timestamp(),
    revision text not null,
    primary key (flip, router)
);

-- Registers a router or keeps it alive; what it has not acknowledged yet comes back.
create function crossover.router_beat(p_id uuid, p_name text, p_revision text, p_good_at timestamptz, p_overrides bigint[])
returns table (id uuid, account text, kinds text[], to_stage text) language sql as $$
    insert into crossover.routers as r (id, name, revision, good_at, overrides) values (p_id, p_name, p_revision, p_good_at, p_overrides)
    on conflict (id) do update set beat_at = clock_timestamp(), ended_at = null, revision = excluded.revision, good_at = excluded.good_at,
        overrides = excluded.overrides,
        seen_at = case when r.revision = excluded.revision then r.seen_at else clock_timestamp() end;
    select f.id, f.account, f.kinds, f.to_stage from crossover.flips f
    where f.until_at > clock_timestamp()
        and not exists (select from crossover.flip_acks a where a.flip = f.id and a.router = p_id)
    order by f.at limit 1000
$$;

-- Overrides --------------------------------------------------------------------------------------------------

-- Break-glass: beats the flags until its time is up, by this database's clock.
create table crossover.overrides (
    id       bigint generated always as identity primary key,
    account  text not null,
    kind     text,
    stage    text not null check (stage in ('off', 'shadow', 'live', 'complete')),
    from_at  timestamptz not null default clock_timestamp(),
    until_at timestamptz not null,
    ended_at timestamptz,
    who      text not null,
    why      text not null,
    ended_by text,
    check (until_at > from_at and until_at <= from_at + interval '24 hours')
);
comment on column crossover.overrides.ended_at is 'When it was ended by hand, or found to have run out.';
create unique index overrides_one on crossover.overrides (account, coalesce(kind, '')) where ended_at is null;

-- Begins an override; a second one for the same account and kind is refused as long as the first is in force.
create function crossover.begin_override(p_account text, p_kind text, p_stage text, p_for interval, p_who text, p_why text)
returns bigint language sql as $$
    update crossover.overrides set ended_at = until_at
    where account = p_account and ended_at is null and until_at <= clock_timestamp();
    -- One reading of the clock: a whole day must not come out as a microsecond more.
    with clock as materialized (select clock_timestamp() as at)
    insert into crossover.overrides (account, kind, stage, from_at, until_at, who, why)
    select p_account, p_kind, p_stage, at, at + p_for, p_who, p_why from clock returning id
$$;

-- Standings and decisions --------------------------------------------------------------------------------------

create table crossover.standings (
    account  text not null,
    kind     text not null,
    stage    text not null check (stage in ('off', 'shadow', 'live', 'complete')),
    revision text not null,
    override bigint,
    since    timestamptz not null default clock_timestamp(),
    primary key (account, kind)
) with (fillfactor = 80);
comment on column crossover.standings.kind is 'Empty: every kind that has no row of its own.';

create table crossover.decisions (
    id         bigint generated always as identity primary key,
    at         timestamptz not null default clock_timestamp(),
    account    text not null,
    kind       text,
    from_stage text not null,
    to_stage   text not null,
    revision   text not null,
    source     text not null,
    router     uuid not null,
    flip       uuid,
    override   bigint,
    who        text,
    why        text
);
comment on table crossover.decisions is 'Every change of a stage that a router saw, whoever made it. The first router to see it writes it.';
comment on column crossover.decisions.kind is 'Null: all kinds of the account alike.';
comment on column crossover.decisions.source is 'file, unleash or override: who decides from then on.';
comment on column crossover.decisions.flip is 'The command that asked for it.';
create index decisions_account on crossover.decisions (account, at);
create index decisions_at on crossover.decisions (at);

-- Whether a step from one stage to another is a step of a flip: the same direction, and not past its end.
create function crossover.leads(p_from text, p_to text, p_flip_from text, p_flip_to text) returns boolean
language sql immutable as $$
    select sign(b - a) = sign(d - c) and b between least(c, d) and greatest(c, d)
    from (select array_position(stages, p_from) as a, array_position(stages, p_to) as b,
            array_position(stages, p_flip_from) as c, array_position(stages, p_flip_to) as d
          from (select array['off', 'shadow', 'live', 'complete'] as stages) s) ranks
$$;

-- Notes what a router now sees of these accounts and kinds. A change that another router has written meanwhile is
-- left out. Returns how many decisions were written, by stage and source.
create function crossover.change_standings(
    p_router uuid, p_accounts text[], p_kinds text[], p_froms text[], p_from_overrides bigint[],
    p_tos text[], p_overrides bigint[], p_revisions text[])
returns table (to_stage text, source text, decisions bigint) language plpgsql as $$
begin
    -- In one order, so that two routers never wait for each other.
    perform from crossover.standings s join unnest(p_accounts, p_kinds) as c (account, kind) using (account, kind)
    order by s.account, s.kind for update of s;
    return query
    with changed as (
        update crossover.standings s
        set stage = c.to_stage, revision = c.revision, override = c.override, since = clock_timestamp()
        from unnest(p_accounts, p_kinds, p_froms, p_from_overrides, p_tos, p_overrides, p_revisions)
            as c (account, kind, from_stage, from_override, to_stage, override, revision)
        where s.account = c.account and s.kind = c.kind and s.stage = c.from_stage
            and s.override is not distinct from c.from_override
        returning c.*),
    -- An account whose kinds changed alike is one decision.
    told as (
        select c.* from (
            select *, bool_or(x.kind = '') over (partition by x.account, x.from_stage, x.to_stage, x.override) as whole
            from changed x) c
        where c.kind = '' or not c.whole),
    written as (
        insert into crossover.decisions as d (account, kind, from_stage, to_stage, revision, source, router, flip, override, who, why)
        select t.account, nullif(t.kind, ''), t.from_stage, t.to_stage, t.revision, split_part(t.revision, ':', 1), p_router,
            f.id, coalesce(t.override, t.from_override),
            case when t.override is not null then o.who when t.from_override is not null then o.ended_by else f.who end,
            case when t.override is not null then o.why
                when t.from_override is not null and o.ended_by is null then format('override %s has run out', o.id)
                when t.from_override is not null then format('override %s was ended', o.id)
                else f.why end
        from told t
        left join crossover.overrides o on o.id = coalesce(t.override, t.from_override)
        left join lateral (
            select f.id, f.who, f.why from crossover.flips f
            -- A kind that stood apart from its account goes its own way.
            cross join lateral (select coalesce(f.froms[array_position(f.kinds, t.kind)], f.from_stage) as from_stage) own
            where t.override is null and t.from_override is null and f.account = t.account
                and (f.kind is null or f.kind = t.kind) and (f.revision is null or f.revision = t.revision)
                and f.at > clock_timestamp() - interval '15 minutes'
                and crossover.leads(t.from_stage, t.to_stage, own.from_stage, f.to_stage)
                -- Whoever comes back there later is somebody else.
                and not exists (select from crossover.decisions d where d.flip = f.id and d.to_stage = t.to_stage
                    and (d.kind = t.kind or d.kind is null and own.from_stage = f.from_stage))
            order by f.at desc limit 1) f on true
        returning d.to_stage, d.source)
    select w.to_stage, w.source, count(*) from written w group by w.to_stage, w.source;
end $$;

-- Where each account and kind stands, as routers last saw it.
create view crossover.stages as
select s.account, nullif(s.kind, '') as kind, s.stage, s.since,
    coalesce(a.armed_at is not null, false) as armed, coalesce(a.unpinned_at is not null, false) as unpinned,
    s.revision, split_part(s.revision, ':', 1) as source, o.until_at as overridden_until
from crossover.standings s
left join crossover.accounts a on a.account = s.account
left join crossover.overrides o on o.id = s.override and o.ended_at is null and o.until_at > now();
comment on view crossover.stages is
    'Where each account and kind stands, as routers last saw it. New work of an unpinned account in live or complete is pinned in shadow until the account is armed.';
comment on column crossover.stages.kind is 'Null: every kind of the account that has no row of its own.';
comment on column crossover.stages.since is 'When a router first saw it there.';
comment on column crossover.stages.armed is 'Postgres may own work of the account.';
comment on column crossover.stages.unpinned is 'Work of the account was once started without a pin, so it can''t go live.';
comment on column crossover.stages.source is 'file, unleash, or override while one is in force.';
comment on column crossover.stages.overridden_until is 'When the override ends by itself; null without one.';
