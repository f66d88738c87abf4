-- What routers ask and tell because Postgres may go away, or was. Called by module `ledger` alone.

-- The series of which something is accepted that Temporal may not have yet: undelivered copies, and rows of the intake, by
-- name. A router looks each second; while Postgres is away it starts members of these without a pin as little as members
-- of series that it never looked at. It walks the index from series to series, so a long outbox costs no more than its series.
create function crossover.waiting_series(p_limit bigint)
returns table (series_id uuid, account text, kind text, series text) language sql stable as $$
    (with recursive walk as (
        (select o.series_id from crossover.outbox o where o.series_id is not null order by o.series_id limit 1)
        union all
        select (select o.series_id from crossover.outbox o where o.series_id > w.series_id order by o.series_id limit 1)
        from walk w where w.series_id is not null)
    select w.series_id, null::text, null::text, null::text from walk w where w.series_id is not null limit p_limit)
    union all
    (select distinct null::uuid, i.account, i.kind, i.series from crossover.intake i
     where i.series is not null and i.refused_at is null limit p_limit)
$$;

-- Notes that an account has work that was started without a pin and never will have one; null: that any account may, for
-- a damaged spool no longer tells which.
create function crossover.unpinned_for_good(p_account text) returns void
language plpgsql as $$
declare
    v_account text;
begin
    if p_account is not null then
        perform crossover.lost_unpinned(p_account);
        return;
    end if;
    for v_account in
        select a.account from crossover.accounts a where a.state not in ('armed', 'disarming') order by a.account
    loop
        perform crossover.lost_unpinned(v_account);
    end loop;
end $$;
