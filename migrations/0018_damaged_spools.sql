-- A spool that is damaged no longer tells which accounts had work without a pin, and some of those may have no row yet. So it
-- is a blind spot as well: no account is locked for it, and every one waits for a window.
create or replace function crossover.unpinned_for_good(p_account text) returns void
language plpgsql as $$
begin
    if p_account is not null then
        perform crossover.lost_unpinned(p_account);
    else
        insert into crossover.blind_spots (router) values ('00000000-0000-0000-0000-000000000000') on conflict do nothing;
    end if;
end $$;
comment on column crossover.blind_spots.router is 'Which; the nil UUID: one whose spool was damaged.';

-- As before, but it does not try to arm on the spot where a blind spot forbids that: the try excludes the account's other pins.
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
            and (v_account.wants_live_at is null or v_account.unpinned_at is null and crossover.none_fails_open()
                and not exists (select from crossover.blind_spots))) then
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
