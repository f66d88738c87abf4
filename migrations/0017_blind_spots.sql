-- A router that is forgotten may have started work without a pin that nobody will ever hear of: its spool is gone with its
-- disk. So from then on nothing is known of any account's past for a whole window, whatever was known before.

create table crossover.blind_spots (
    at     timestamptz primary key default clock_timestamp(),
    router uuid not null
);
comment on table crossover.blind_spots is 'When a router was forgotten that could have started work without a pin. Kept for a window.';

-- Whether every key that a caller may still repeat has a pin. Without an unpinned past there is none without.
create function crossover.window_is_over(p_account crossover.accounts, p_window interval) returns boolean
language sql stable as $$
    select (p_account.unpinned_at is null or p_account.window_from + p_window <= clock_timestamp())
        and not exists (select from crossover.blind_spots b where b.at + p_window > clock_timestamp())
$$;

-- Takes a process out of the registry that did not say goodbye. False: there is none, or it has ended.
create function crossover.forget_router(p_router uuid) returns boolean
language plpgsql as $$
declare
    v_router crossover.routers;
begin
    update crossover.routers set ended_at = clock_timestamp() where id = p_router and ended_at is null returning * into v_router;
    if not found then return false; end if;
    if not (v_router.fails_open or v_router.in_doubt > 0 or v_router.spooled > 0) then return true; end if;
    -- In the transaction in which it is no longer waited for: `advance` looks first who has acknowledged and then for this, so
    -- no barrier falls before it is seen.
    insert into crossover.blind_spots (router) values (p_router) on conflict do nothing;
    return true;
end $$;

-- Blind spots that are a window old.
create function crossover.forget_blind_spots(p_window interval) returns void
language sql as $$ delete from crossover.blind_spots where at + p_window <= clock_timestamp() $$;

-- As before, but for blind spots.
create or replace function crossover.begin_arming(p_account text, p_stage text, p_asked_by text) returns crossover.accounts
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
        and crossover.none_fails_open() and not exists (select from crossover.blind_spots) then
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

create or replace function crossover.advance(p_account text, p_generation bigint, p_window interval) returns text
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
        if crossover.live_wanted(v_account) and crossover.window_is_over(v_account, p_window) then
            v_to := 'closing';
        end if;
    when 'closing' then
        if not crossover.live_wanted(v_account) or not crossover.window_is_over(v_account, p_window) then v_to := 'window';
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

create or replace function crossover.arming_due(p_window interval, p_limit integer)
returns table (account text, state text, generation bigint) language sql stable as $$
    (select a.account, a.state, a.generation from crossover.accounts a
     where a.state not in ('open', 'armed') and coalesce(a.driven_until, '-infinity') <= clock_timestamp()
        and case a.state
            when 'pinning' then crossover.all_acknowledged(a.account, a.generation)
            when 'window' then crossover.window_is_over(a, p_window) and crossover.live_wanted(a)
            when 'closing' then crossover.all_acknowledged(a.account, a.generation) or not crossover.live_wanted(a)
                or not crossover.window_is_over(a, p_window)
            else true end
     order by a.driven_until nulls first, a.state_since limit p_limit)
    union all
    (select distinct s.account, 'open', coalesce(a.generation, 0)
     from crossover.standings s left join crossover.accounts a on a.account = s.account
     where s.stage in ('live', 'complete') and coalesce(a.state, 'open') = 'open' limit p_limit)
$$;
