-- Arming: how an account gets to where Postgres may own its work, and back.
--
--   open ──► pinning ──► window ──► closing ──► reconciling ──► armed ──► disarming ──► open
--
-- `accounts.state` is the truth; every change of it takes the next generation. Routers hold a copy, in memory and on disk,
-- and say so in `arming_acks`: three of the steps wait for all that are registered. docs/arming.md says it to operators.
-- Written by module `arming`, by `crossover.pin` and by `crossover.mark_unpinned`, and by nobody else.

-- Accounts and routers ---------------------------------------------------------------------------------------

alter table crossover.accounts
    add column state text not null default 'open'
        check (state in ('open', 'pinning', 'window', 'closing', 'reconciling', 'armed', 'disarming')),
    add column generation bigint not null default 0,
    add column changed bigint not null default 0,
    add column state_since timestamptz,
    add column window_from timestamptz,
    add column wants_live_at timestamptz,
    add column asked_at timestamptz,
    add column asked_by text,
    add column driven_until timestamptz,
    add column left_to_reconcile integer,
    add column trouble text;
comment on column crossover.accounts.unpinned_at is 'When work of this account was first started without a pin; null once it is armed, for then all of it has a pin.';
comment on column crossover.accounts.armed_at is 'Since when Postgres may own work of this account.';
comment on column crossover.accounts.state is 'open: work may start without a pin. armed: Postgres may own. Between them: docs/arming.md.';
comment on column crossover.accounts.generation is 'Counts the changes of state; what a router acknowledges.';
comment on column crossover.accounts.changed is 'The transaction of the last change of state, by which routers find what is new.';
comment on column crossover.accounts.window_from is 'The window of idempotency runs from here: since then every key has a pin. In disarming: since then Postgres owns nothing unended.';
comment on column crossover.accounts.wants_live_at is 'When a pin in live or complete first asked for Postgres.';
comment on column crossover.accounts.asked_at is 'When an operator asked to arm it ahead.';
comment on column crossover.accounts.driven_until is 'A process is at its reconciliation until then.';
comment on column crossover.accounts.left_to_reconcile is 'Open workflows without a pin that its reconciliation last found.';
comment on column crossover.accounts.trouble is 'Why the last step failed.';
update crossover.accounts set state = 'armed', generation = 1, changed = pg_current_xact_id()::text::bigint, state_since = armed_at
where armed_at is not null;
create index accounts_under_way on crossover.accounts (account) where state not in ('open', 'armed');
create index accounts_changed on crossover.accounts (changed) where generation > 0;

alter table crossover.routers
    add column roles text[] not null default '{router}',
    add column fails_open boolean not null default false,
    add column in_doubt integer not null default 0,
    add column spooled bigint not null default 0,
    add column trouble text;
comment on table crossover.routers is 'Every process that decides stages or runs work on Temporal. It registers before it takes traffic, beats each second, and says when it ends.';
comment on column crossover.routers.fails_open is 'While Postgres is away it may start work without a pin, or it still has such work to write.';
comment on column crossover.routers.in_doubt is 'Starts without a pin whose outcome is not known there yet.';
comment on column crossover.routers.spooled is 'Starts that are not written to Postgres there yet.';
comment on column crossover.routers.trouble is 'Why it can''t acknowledge.';

create table crossover.arming_acks (
    account    text not null,
    generation bigint not null,
    router     uuid not null references crossover.routers on delete cascade,
    at         timestamptz not null default clock_timestamp(),
    primary key (account, generation, router)
);
comment on table crossover.arming_acks is 'This process holds the account''s state of this generation on disk, and nothing that it started without a pin before is in doubt. Kept while the state lasts.';
create index arming_acks_router on crossover.arming_acks (router);

-- For the driver: who is to be live.
create index standings_live on crossover.standings (account) where stage in ('live', 'complete');

-- What holds -------------------------------------------------------------------------------------------------

-- Arming on the spot shares this lock; a process that begins to fail open excludes it. So of the two, one sees the other.
create function crossover.registry_lock() returns bigint
language sql immutable parallel safe as $$ select hashtextextended('crossover.registry', 0) $$;

create function crossover.none_fails_open() returns boolean
language sql stable as $$ select not exists (select from crossover.routers r where r.ended_at is null and r.fails_open) $$;

-- Whether every registered process has acknowledged the state.
create function crossover.all_acknowledged(p_account text, p_generation bigint) returns boolean
language sql stable as $$
    select not exists (
        select from crossover.routers r
        where r.ended_at is null and not exists (
            select from crossover.arming_acks k
            where k.account = p_account and k.generation = p_generation and k.router = r.id))
$$;

-- Whether somebody wants Postgres to own the account's work: the flags as routers saw them last, an operator, or a pin of a
-- moment ago that no router has written down yet.
create function crossover.live_wanted(p_account crossover.accounts) returns boolean
language sql stable as $$
    select p_account.asked_at is not null
        or exists (select from crossover.standings s where s.account = p_account.account and s.stage in ('live', 'complete'))
        or coalesce(p_account.wants_live_at > clock_timestamp() - interval '1 minute', false)
        or (p_account.wants_live_at is not null
            and not exists (select from crossover.standings s where s.account = p_account.account))
$$;

-- The change of state -----------------------------------------------------------------------------------------

-- The one place that changes a state. Whoever calls it has locked the account against pins.
create function crossover.change_state(p_account text, p_to text) returns crossover.accounts
language plpgsql as $$
declare
    v_account crossover.accounts;
begin
    update crossover.accounts a set
        state = p_to, generation = a.generation + 1, changed = pg_current_xact_id()::text::bigint,
        state_since = clock_timestamp(), driven_until = null, left_to_reconcile = null, trouble = null,
        armed_at = case p_to when 'armed' then coalesce(a.armed_at, clock_timestamp()) when 'disarming' then a.armed_at end,
        -- All that was ever unpinned is past its window or has a pin.
        unpinned_at = case when p_to <> 'armed' then a.unpinned_at end,
        window_from = case when p_to in ('window', 'closing', 'reconciling') then coalesce(a.window_from, clock_timestamp()) end,
        wants_live_at = case when p_to not in ('open', 'disarming') then a.wants_live_at end,
        asked_at = case when p_to not in ('open', 'disarming') then a.asked_at end,
        asked_by = case when p_to not in ('open', 'disarming') then a.asked_by end
    where a.account = p_account returning * into v_account;
    delete from crossover.arming_acks k where k.account = p_account;
    return v_account;
end $$;

-- Takes note that work of the account is to be in p_stage, or that somebody asks for it to be armed. An account without
-- an unpinned past is armed on the spot where no process could have given it one; else its way begins.
create function crossover.begin_arming(p_account text, p_stage text, p_asked_by text) returns crossover.accounts
language plpgsql as $$
declare
    v_account crossover.accounts;
    v_live    boolean := p_stage in ('live', 'complete');
    v_fresh   boolean := current_setting('transaction_isolation') in ('read committed', 'read uncommitted');
begin
    perform pg_advisory_xact_lock(crossover.account_lock(p_account));
    if v_live then perform pg_advisory_xact_lock_shared(crossover.registry_lock()); end if;
    insert into crossover.accounts (account) values (p_account) on conflict do nothing;
    select * into v_account from crossover.accounts a where a.account = p_account for update;
    if v_live and v_account.state <> 'disarming' and v_account.wants_live_at is null then
        update crossover.accounts a set wants_live_at = clock_timestamp() where a.account = p_account;
    end if;
    if p_asked_by is not null and v_account.asked_at is null then
        update crossover.accounts a set asked_at = clock_timestamp(), asked_by = p_asked_by where a.account = p_account;
    end if;
    if v_live and v_fresh and v_account.state not in ('armed', 'disarming') and v_account.unpinned_at is null
        and crossover.none_fails_open() then
        return crossover.change_state(p_account, 'armed');
    elsif v_account.state = 'open' and p_stage <> 'off' then
        return crossover.change_state(p_account, 'pinning');
    elsif v_account.state = 'disarming' and p_asked_by is not null then
        -- Everything is pinned as before, so it may be taken back.
        return crossover.change_state(p_account, 'armed');
    end if;
    select * into v_account from crossover.accounts a where a.account = p_account;
    return v_account;
end $$;

-- Asks to go back to open. What was never armed is there at once: Postgres owns nothing of it. Null: the flags want it live.
create function crossover.begin_disarming(p_account text) returns crossover.accounts
language plpgsql as $$
declare
    v_account crossover.accounts;
begin
    perform pg_advisory_xact_lock(crossover.account_lock(p_account));
    select * into v_account from crossover.accounts a where a.account = p_account for update;
    if exists (select from crossover.standings s where s.account = p_account and s.stage in ('live', 'complete')) then
        return null;
    elsif v_account.state = 'armed' then
        return crossover.change_state(p_account, 'disarming');
    elsif v_account.state in ('pinning', 'window', 'closing', 'reconciling') then
        return crossover.change_state(p_account, 'open');
    end if;
    return v_account;
end $$;

-- The driver's step: moves an account on if what it waits for has come. Null: it has not, or somebody else moved it.
-- A step that finds the account busy gives up soon, for pins queue behind it.
create function crossover.advance(p_account text, p_generation bigint, p_window interval) returns text
language plpgsql as $$
declare
    v_account crossover.accounts;
    v_acked   boolean;
    v_owns    boolean;
    v_to      text;
begin
    perform set_config('lock_timeout', '200ms', true);
    perform pg_advisory_xact_lock(crossover.account_lock(p_account));
    select * into v_account from crossover.accounts a where a.account = p_account and a.generation = p_generation for update;
    if not found then return null; end if;
    v_acked := crossover.all_acknowledged(p_account, p_generation);
    case v_account.state
    when 'pinning' then
        if v_acked then v_to := 'window'; end if;
    when 'window' then
        -- Without an unpinned past there is no key without a pin.
        if crossover.live_wanted(v_account)
            and (v_account.unpinned_at is null or v_account.window_from + p_window <= clock_timestamp()) then
            v_to := 'closing';
        end if;
    when 'closing' then
        if not crossover.live_wanted(v_account) then v_to := 'window';
        elsif v_acked then v_to := 'reconciling';
        end if;
    when 'disarming' then
        v_owns := exists (select from crossover.pins p
            where p.account = p_account and p.ended_at is null and p.owner <> 'temporal');
        if v_owns = (v_account.window_from is not null) then
            update crossover.accounts a set window_from = case when not v_owns then clock_timestamp() end
            where a.account = p_account;
        elsif not v_owns and v_acked and v_account.window_from + p_window <= clock_timestamp() then
            v_to := 'open';
        end if;
        if v_to is null then
            update crossover.accounts a set driven_until = clock_timestamp() + interval '1 second' where a.account = p_account;
        end if;
    else null;
    end case;
    if v_to is null then return null; end if;
    perform crossover.change_state(p_account, v_to);
    return v_to;
end $$;

-- What a step may be due for: accounts whose wait is over, and those that the flags want live and nobody has begun.
create function crossover.arming_due(p_window interval, p_limit integer)
returns table (account text, state text, generation bigint) language sql stable as $$
    (select a.account, a.state, a.generation from crossover.accounts a
     where a.state not in ('open', 'armed') and coalesce(a.driven_until, '-infinity') <= clock_timestamp()
        and case a.state
            when 'pinning' then crossover.all_acknowledged(a.account, a.generation)
            when 'window' then (a.unpinned_at is null or a.window_from + p_window <= clock_timestamp()) and crossover.live_wanted(a)
            when 'closing' then crossover.all_acknowledged(a.account, a.generation) or not crossover.live_wanted(a)
            else true end
     order by a.driven_until nulls first, a.state_since limit p_limit)
    union all
    (select distinct s.account, 'open', coalesce(a.generation, 0)
     from crossover.standings s left join crossover.accounts a on a.account = s.account
     where s.stage in ('live', 'complete') and coalesce(a.state, 'open') = 'open' limit p_limit)
$$;

-- Takes an account's reconciliation for a while: it goes on where it stood, but twice at once is a waste.
create function crossover.take_reconciliation(p_account text, p_generation bigint, p_for interval) returns boolean
language sql as $$
    update crossover.accounts a set driven_until = clock_timestamp() + p_for
    where a.account = p_account and a.generation = p_generation and a.state = 'reconciling'
        and coalesce(a.driven_until, '-infinity') <= clock_timestamp()
    returning true
$$;

-- What came of it: done, or so many workflows are left (null: unknown) and it is looked at again a little later.
create function crossover.reconciled(p_account text, p_generation bigint, p_done boolean, p_left integer, p_trouble text, p_again interval)
returns boolean language plpgsql as $$
begin
    if p_done then
        perform set_config('lock_timeout', '200ms', true);
        perform pg_advisory_xact_lock(crossover.account_lock(p_account));
    end if;
    perform from crossover.accounts a
    where a.account = p_account and a.generation = p_generation and a.state = 'reconciling' for update;
    if not found then return false; end if;
    if p_done then
        perform crossover.change_state(p_account, 'armed');
    else
        update crossover.accounts a
        set driven_until = clock_timestamp() + p_again, left_to_reconcile = coalesce(p_left, a.left_to_reconcile), trouble = p_trouble
        where a.account = p_account;
    end if;
    return true;
end $$;

-- A router has lost work that it had started without a pin and not written yet: the account has an unpinned past, and its
-- window starts again. False: it is armed, which must not happen, for a router with such work does not acknowledge `closing`.
create function crossover.lost_unpinned(p_account text) returns boolean
language plpgsql as $$
declare
    v_state text;
begin
    perform pg_advisory_xact_lock(crossover.account_lock(p_account));
    insert into crossover.accounts as a (account, unpinned_at) values (p_account, clock_timestamp())
    on conflict (account) do update set
        unpinned_at = case when a.armed_at is null then coalesce(a.unpinned_at, clock_timestamp()) end,
        window_from = case when a.state in ('window', 'closing', 'reconciling') then clock_timestamp() else a.window_from end
    returning state into v_state;
    if v_state in ('closing', 'reconciling') then perform crossover.change_state(p_account, 'window'); end if;
    return v_state not in ('armed', 'disarming');
end $$;

-- Processes ---------------------------------------------------------------------------------------------------

-- Registers a process or keeps it alive; the flips that it has not acknowledged come back, one row at least. It is fresh
-- where Postgres did not know it, or not so: then it has to read all accounts anew.
create function crossover.process_beat(
    p_id uuid, p_name text, p_roles text[], p_fails_open boolean, p_in_doubt integer, p_spooled bigint, p_trouble text,
    p_revision text, p_good_at timestamptz, p_overrides bigint[])
returns table (fresh boolean, id uuid, account text, kinds text[], to_stage text) language plpgsql as $$
#variable_conflict use_column
declare
    v_fresh boolean;
begin
    update crossover.routers r set
        beat_at = clock_timestamp(), roles = p_roles, fails_open = p_fails_open, in_doubt = p_in_doubt, spooled = p_spooled,
        trouble = p_trouble, revision = p_revision, good_at = p_good_at, overrides = p_overrides,
        seen_at = case when r.revision = p_revision then r.seen_at else clock_timestamp() end
    where r.id = p_id and r.ended_at is null and (r.fails_open or not p_fails_open);
    v_fresh := not found;
    if v_fresh then
        -- Accounts that are being armed on the spot now are so when it reads them.
        perform pg_advisory_xact_lock(crossover.registry_lock());
        insert into crossover.routers as r (id, name, roles, fails_open, in_doubt, spooled, trouble, revision, good_at, overrides)
        values (p_id, p_name, p_roles, p_fails_open, p_in_doubt, p_spooled, p_trouble, p_revision, p_good_at, p_overrides)
        on conflict (id) do update set beat_at = clock_timestamp(), ended_at = null, name = excluded.name, roles = excluded.roles,
            started_at = case when r.ended_at is null then r.started_at else clock_timestamp() end,
            fails_open = excluded.fails_open, in_doubt = excluded.in_doubt, spooled = excluded.spooled, trouble = excluded.trouble,
            revision = excluded.revision, good_at = excluded.good_at, overrides = excluded.overrides,
            seen_at = case when r.revision = excluded.revision then r.seen_at else clock_timestamp() end;
        -- What it said before it ended is not what it says now.
        delete from crossover.arming_acks k where k.router = p_id;
    end if;
    return query
    select v_fresh, f.id, f.account, f.kinds, f.to_stage
    from (select 1) one left join lateral (
        select f.id, f.account, f.kinds, f.to_stage from crossover.flips f
        where f.until_at > clock_timestamp() and 'router' = any (p_roles)
            and not exists (select from crossover.flip_acks a where a.flip = f.id and a.router = p_id)
        order by f.at limit 1000) f on true;
end $$;

-- Enqueue -----------------------------------------------------------------------------------------------------

-- Asks to start work of an account without a pin. False: its work must be pinned. The mark commits before the start, so
-- an account that ever had unpinned work is known to have had it.
create or replace function crossover.mark_unpinned(p_account text) returns boolean
language plpgsql as $$
declare
    v_open boolean;
begin
    perform pg_advisory_xact_lock(crossover.account_lock(p_account));
    insert into crossover.accounts as a (account, unpinned_at) values (p_account, clock_timestamp())
    on conflict (account) do update
        set unpinned_at = case when a.state = 'open' then coalesce(a.unpinned_at, clock_timestamp()) else a.unpinned_at end
    returning state = 'open' into v_open;
    return v_open;
end $$;

-- As before, but for the account's state: a pin in shadow or above begins the arming of an open account.
create or replace function crossover.pin(
    p_account text, p_key text, p_kind text, p_stage text, p_flag_revision text,
    p_series text, p_series_id uuid, p_grp text, p_priority smallint, p_run_at timestamptz,
    p_payload_hash bytea, p_payload json, p_policy json, p_weight integer, p_grace interval,
    out created boolean, out direct boolean, out pin crossover.pins, out behind uuid[])
language plpgsql as $$
declare
    v_id      uuid := crossover.interaction_id(p_account, p_key);
    v_now     timestamptz;
    v_run_at  timestamptz;
    v_live    boolean := p_stage in ('live', 'complete');
    v_account crossover.accounts;
    v_stage   text := p_stage;
    v_no      bigint;
    v_head    bigint;
begin
    created := false; direct := false; behind := '{}';
    select * into pin from crossover.pins where id = v_id;
    if found then return; end if;

    -- Locked first and timed then, so that complete_until never passes a pin that is not visible yet.
    lock table crossover.pins in row exclusive mode;
    v_now := clock_timestamp();
    v_run_at := coalesce(p_run_at, v_now);

    -- Where the account stands. Only what changes it excludes other pins of the account; `begin_arming` looks again.
    select * into v_account from crossover.accounts a where a.account = p_account;
    if v_account.account is null
        or (v_account.state = 'open' and p_stage <> 'off')
        or (v_live and v_account.state not in ('armed', 'disarming')
            and (v_account.wants_live_at is null or v_account.unpinned_at is null and crossover.none_fails_open())) then
        v_account := crossover.begin_arming(p_account, p_stage, null);
    else
        perform pg_advisory_xact_lock_shared(crossover.account_lock(p_account));
        select * into v_account from crossover.accounts a where a.account = p_account;
    end if;
    -- A caller's transaction that reads an old snapshot must not go by a state that has passed: the row's lock refuses it.
    if current_setting('transaction_isolation') not in ('read committed', 'read uncommitted') then
        perform from crossover.accounts a where a.account = p_account for share;
    end if;
    if v_live and v_account.state <> 'armed' then v_stage := 'shadow'; end if;

    -- Members of a series are chained under its row's lock, which lasts until the commit: numbers have no gaps
    -- and commit in order.
    if p_series_id is not null then
        insert into crossover.series (series_id, account, kind, series)
        values (p_series_id, p_account, p_kind, p_series) on conflict do nothing;
        select last_no + 1, head_no into v_no, v_head from crossover.series where series_id = p_series_id for update;
    end if;

    insert into crossover.pins (id, created_at, run_at, series_id, series_no, weight, priority, on_temporal, on_postgres, stage,
        owner, account, kind, key, series, grp, flag_revision, payload_hash)
    values (v_id, v_now, v_run_at, p_series_id, v_no, p_weight, p_priority, v_stage <> 'complete', v_stage <> 'off', v_stage,
        case when v_stage in ('live', 'complete') then 'postgres' else 'temporal' end,
        p_account, p_kind, p_key, p_series, p_grp, p_flag_revision, p_payload_hash)
    on conflict (id) do nothing returning * into pin;
    if not found then
        select * into pin from crossover.pins where id = v_id;
        return;
    end if;
    created := true;
    insert into crossover.payloads (id, created_at, payload, policy) values (v_id, v_now, p_payload, p_policy);

    if p_series_id is not null then
        update crossover.series set last_no = v_no where series_id = p_series_id;
    end if;
    if pin.on_postgres and (v_no is null or v_no = v_head) then
        perform crossover.place(v_id, v_run_at, 1, p_priority, pin.owner = 'postgres', p_grp);
    end if;

    if pin.on_temporal then
        direct := true;
        if v_no is not null then
            direct := not exists (select from crossover.outbox o where o.series_id = p_series_id)
                and crossover.deliverable(p_series_id, v_no, v_head);
            -- Postgres ends its members in order, so the latest of them stand for all.
            behind := array(
                select p.id from crossover.pins p
                where p.series_id = p_series_id and p.series_no >= v_head and p.series_no < v_no
                    and p.ended_at is null and p.owner <> 'temporal'
                order by p.series_no desc limit 64);
        end if;
        insert into crossover.outbox (id, due_at, series_id, series_no, epoch, behind)
        values (v_id, case when direct then v_now + p_grace else v_now end, p_series_id, v_no, pin.epoch, behind);
    end if;
end $$;

-- What is shown -----------------------------------------------------------------------------------------------

create or replace view crossover.stages as
select s.account, nullif(s.kind, '') as kind, s.stage, s.since,
    coalesce(a.state = 'armed', false) as armed, coalesce(a.unpinned_at is not null, false) as unpinned,
    s.revision, split_part(s.revision, ':', 1) as source, o.until_at as overridden_until,
    coalesce(a.state, 'open') as arming, a.state_since as arming_since
from crossover.standings s
left join crossover.accounts a on a.account = s.account
left join crossover.overrides o on o.id = s.override and o.ended_at is null and o.until_at > now();
comment on view crossover.stages is
    'Where each account and kind stands, as routers last saw it. New work of an account in live or complete is pinned in shadow, and runs on Temporal, until the account is armed.';
comment on column crossover.stages.unpinned is 'Work of the account was started without a pin since it was last armed, so arming it takes a whole window.';
comment on column crossover.stages.arming is 'How far the account is on its way: open, pinning, window, closing, reconciling, armed, disarming. docs/arming.md.';
comment on column crossover.stages.arming_since is 'Since when; null where it never was anything but open.';
