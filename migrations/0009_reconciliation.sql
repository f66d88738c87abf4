-- The Temporal half of arming: what is still open on Temporal without a pin gets one, and what was missed gets it when it
-- is about to run. Written by `ledger::reconcile` alone.

-- Pins a copy that Temporal has without a pin (p_insert), or looks at the pin of one, and says whether that copy may run:
--   own: the pin is this copy's, and has not ended;   ended: it is this copy's and has ended;
--   moved: another side or another epoch owns it;     other: its key came with another payload;
--   held: the key has two copies that differ, and a person has to look;   gone: there is no pin (any more).
-- A pin that is made here is Temporal's, in stage off: there is no Postgres copy. In a series it takes the next number: all
-- that have one already were pinned for Temporal, because nothing else is before the account is armed, and for Temporal the
-- order of its own workflow counts. Only what is pinned afterwards can be Postgres's, and that waits for every number before it.
-- p_deliver leaves a row in the outbox, whose delivery tells the copy that it has a pin.
-- `behind` is what has to end before this copy may run: earlier members that Postgres owns and that may run now. One that comes
-- after another member of Temporal can't: that member is behind this copy in the same workflow, and would never get its turn.
-- Locks in the order of crossover.pin: the account's, the series, the pin.
create function crossover.reconcile_pin(
    p_account text, p_key text, p_kind text, p_series text, p_series_id uuid, p_grp text, p_run_at timestamptz, p_epoch integer,
    p_payload_hash bytea, p_payload json, p_policy json, p_weight integer, p_revision text, p_insert boolean, p_deliver boolean,
    out verdict text, out created boolean, out attempts integer, out reason text, out behind uuid[])
language plpgsql as $$
declare
    v_id   uuid        := crossover.interaction_id(p_account, p_key);
    v_now  timestamptz := clock_timestamp();
    v_pin  crossover.pins;
    v_no   bigint;
    v_head bigint;
begin
    created := false; behind := '{}';
    select * into v_pin from crossover.pins where id = v_id;
    if not found and p_insert then
        perform pg_advisory_xact_lock_shared(crossover.account_lock(p_account));
        if p_series_id is not null then
            insert into crossover.series (series_id, account, kind, series)
            values (p_series_id, p_account, p_kind, p_series) on conflict do nothing;
            select last_no + 1 into v_no from crossover.series where series_id = p_series_id for update;
        end if;
        insert into crossover.pins (id, created_at, run_at, series_id, series_no, epoch, weight, on_temporal, on_postgres, stage,
            owner, account, kind, key, series, grp, flag_revision, payload_hash)
        values (v_id, v_now, coalesce(p_run_at, v_now), p_series_id, v_no, p_epoch, p_weight, true, false, 'off',
            'temporal', p_account, p_kind, p_key, p_series, p_grp, p_revision, p_payload_hash)
        on conflict (id) do nothing returning * into v_pin;
        created := found;
        if not created then
            select * into v_pin from crossover.pins where id = v_id;
        else
            insert into crossover.payloads (id, created_at, payload, policy) values (v_id, v_now, p_payload, p_policy);
            if v_no is not null then
                update crossover.series set last_no = v_no where series_id = p_series_id;
            end if;
            if p_deliver then
                insert into crossover.outbox (id, due_at, series_id, series_no, epoch, behind)
                -- A member of a series is told by an update as well, which takes this row out.
                values (v_id, case when v_no is null then v_now else v_now + interval '2 seconds' end, p_series_id, v_no, p_epoch, '{}');
            end if;
        end if;
    end if;

    attempts := coalesce(v_pin.attempts, 0);
    verdict := case
        when v_pin.id is null then 'gone'
        when v_pin.owner <> 'temporal' or v_pin.epoch <> p_epoch then 'moved'
        when v_pin.payload_hash <> p_payload_hash or v_pin.kind <> p_kind then 'other'
        when v_pin.ended_at is not null then 'ended'
        when v_pin.conflict is not null then 'held'
        else 'own' end;
    reason := case verdict
        when 'gone' then 'there is no pin of it any more'
        when 'moved' then format('its pin says owner %s, epoch %s', v_pin.owner, v_pin.epoch)
        when 'other' then 'its key is pinned with other work'
        when 'ended' then format('its pin has ended: %s', v_pin.outcome)
        when 'held' then format('it is held: %s', v_pin.conflict) end;
    if verdict = 'own' and v_pin.series_id is not null then
        select head_no into v_head from crossover.series where series_id = v_pin.series_id;
        behind := array(
            select p.id from crossover.pins p
            where p.series_id = v_pin.series_id and p.series_no >= v_head and p.series_no < v_pin.series_no
                and p.ended_at is null and p.owner <> 'temporal'
                and not exists (
                    select from crossover.pins t
                    where t.series_id = p.series_id and t.series_no >= v_head and t.series_no < p.series_no
                        and t.ended_at is null and t.owner = 'temporal')
            order by p.series_no desc limit 64);
    end if;
end $$;

-- How far the reconciliation of an account has got, for `status` and for whoever goes on after a crash.
create table crossover.reconciliations (
    account    text primary key,
    generation bigint not null,
    began_at   timestamptz not null default clock_timestamp(),
    marker_at  timestamptz,
    looked_at  timestamptz,
    done_at    timestamptz,
    passes     integer not null default 0,
    listed     bigint not null default 0,
    unpinned   bigint not null default 0,
    pinned     bigint not null default 0,
    refused    bigint not null default 0,
    remembered bigint not null default 0,
    error      text
) with (fillfactor = 70);
comment on column crossover.reconciliations.generation is 'Which arming of the account this belongs to.';
comment on column crossover.reconciliations.marker_at is 'When a workflow that was started for this was first listed: how far the listing lags.';
comment on column crossover.reconciliations.listed is 'Open workflows of the account, as the last pass found them.';
comment on column crossover.reconciliations.unpinned is 'How many copies without a pin the last pass found. None, after the marker: done.';
comment on column crossover.reconciliations.pinned is 'Pins made for them, by all passes.';
comment on column crossover.reconciliations.refused is 'Copies whose key is pinned for somebody else, as the last pass found them: they never run.';
comment on column crossover.reconciliations.remembered is 'Keys that series still remember, as the last pass found them. They ended before, and have no pin.';

-- Begins an account's reconciliation, or goes on with it; a later generation begins anew, an earlier one gets no row.
create function crossover.begin_reconciliation(p_account text, p_generation bigint) returns setof crossover.reconciliations
language sql as $$
    insert into crossover.reconciliations as r (account, generation) values (p_account, p_generation)
    on conflict (account) do update set generation = excluded.generation,
        began_at = case when r.generation < excluded.generation then excluded.began_at else r.began_at end,
        marker_at = case when r.generation = excluded.generation then r.marker_at end,
        looked_at = case when r.generation = excluded.generation then r.looked_at end,
        done_at = case when r.generation = excluded.generation then r.done_at end,
        passes = case when r.generation = excluded.generation then r.passes else 0 end,
        listed = case when r.generation = excluded.generation then r.listed else 0 end,
        unpinned = case when r.generation = excluded.generation then r.unpinned else 0 end,
        pinned = case when r.generation = excluded.generation then r.pinned else 0 end,
        refused = case when r.generation = excluded.generation then r.refused else 0 end,
        remembered = case when r.generation = excluded.generation then r.remembered else 0 end,
        error = case when r.generation = excluded.generation then r.error end
        where r.generation <= excluded.generation
    returning r.*
$$;
