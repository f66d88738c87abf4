-- What the two sides were seen to do with an interaction, and what the comparator made of it.
--
-- `sightings` is written by module `observer`, in batches, beside the work that it describes and never in its
-- transactions. The comparator joins it with pins and attempts, which are written with the work, and keeps one row an
-- interaction in `observations`.

-- Sightings --------------------------------------------------------------------------------------------------

create table crossover.sightings (
    seen_at      timestamptz not null default clock_timestamp(),
    side_at      timestamptz not null,
    due_at       timestamptz,
    id           uuid not null,
    observer     uuid not null,
    epoch        integer not null,
    attempt      integer not null,
    rehearsal    boolean not null,
    retry_ms     bigint,
    side         text not null check (side in ('temporal', 'postgres')),
    what         text not null check (what in ('delivered', 'skipped', 'dequeued', 'released', 'ended', 'refused')),
    outcome      text,
    kind         text,
    grp          text,
    payload_hash bytea,
    payload      json,
    note         text
) partition by range (seen_at);
comment on table crossover.sightings is 'What a side was seen to do, a row each. Lost where a process dies before it could write; attempts are not.';
comment on column crossover.sightings.seen_at is 'By the database''s clock, when it was written.';
comment on column crossover.sightings.side_at is 'By the clock of the process that saw it.';
comment on column crossover.sightings.due_at is 'When the attempt was due, as its side sees it; with dequeued.';
comment on column crossover.sightings.what is
    'delivered: Temporal has the copy. skipped: there was nothing left to deliver, or never will be. dequeued: an attempt began. released: it was handed back unrun and begins again under the same number. ended: an attempt ended. refused: a late result was not taken.';
comment on column crossover.sightings.payload is 'As this side read it, only where its hash is not the pin''s.';
create index sightings_id on crossover.sightings (id);
create index sightings_seen on crossover.sightings using brin (seen_at) with (pages_per_range = 16, autosummarize = on);
create table crossover.sightings_default partition of crossover.sightings default;

-- Who writes sightings. One that stopped beating without an end may have died with some unwritten.
create table crossover.observers (
    id         uuid primary key,
    name       text not null,
    started_at timestamptz not null default clock_timestamp(),
    beat_at    timestamptz not null default clock_timestamp(),
    ended_at   timestamptz,
    dropped    bigint not null default 0,
    dropped_at timestamptz
) with (fillfactor = 50);
comment on column crossover.observers.dropped is 'Sightings that it had no room for or could not write in time.';

-- When a side could not work as it should: what was late then is not the rehearsal's fault.
create table crossover.disturbances (
    side     text not null check (side in ('temporal', 'postgres')),
    began_at timestamptz not null,
    ended_at timestamptz not null,
    what     text not null,
    primary key (side, began_at, what)
);

-- Partitions of one more table, and an attach that does not wait long. Otherwise the body is that of the first migration.
create or replace function crossover.make_partitions(p_days integer) returns integer
language plpgsql as $$
declare
    parent text;
    part   text;
    from_day date;
    made   integer := 0;
begin
    perform pg_advisory_xact_lock(hashtextextended('crossover.partitions', 0));
    -- Whoever works with these tables waits behind an attach that waits, so it gives up soon.
    perform set_config('lock_timeout', '200ms', true);
    foreach parent in array array['payloads', 'attempts', 'sightings'] loop
        for from_day in select d::date from generate_series(current_date, current_date + p_days, interval '1 day') d loop
            part := format('%s_%s', parent, to_char(from_day, 'YYYYMMDD'));
            continue when to_regclass('crossover.' || part) is not null;
            begin
                execute format('create table crossover.%I (like crossover.%I including defaults including constraints)',
                    part, parent);
                execute format('alter table crossover.%I attach partition crossover.%I for values from (%L) to (%L)',
                    parent, part, from_day::timestamptz, (from_day + 1)::timestamptz);
                made := made + 1;
            exception
                when check_violation then
                    -- Rows of that day lie in the default partition, where they may stay. The other days must not wait for it.
                    raise warning 'no partition % is made: rows of that day are in crossover.%_default', part, parent;
                when lock_not_available then
                    raise warning 'no partition % is made for now: somebody reads crossover.%_default; it is tried again', part, parent;
            end;
        end loop;
    end loop;
    return made;
end $$;

-- The comparator ---------------------------------------------------------------------------------------------

-- One row an interaction pinned in shadow or live (or seen on a side where it should not be).
create table crossover.observations (
    id                    uuid primary key,
    pinned_at             timestamptz not null,
    run_at                timestamptz not null,
    look_at               timestamptz,
    judged_at             timestamptz,
    temporal_delivered_at timestamptz,
    temporal_due_at       timestamptz,
    temporal_dequeued_at  timestamptz,
    temporal_ended_at     timestamptz,
    postgres_due_at       timestamptz,
    postgres_dequeued_at  timestamptz,
    postgres_ended_at     timestamptz,
    series_no             bigint,
    temporal_attempts     integer not null default 0,
    postgres_attempts     integer not null default 0,
    epoch                 integer not null,
    looks                 integer not null default 0,
    account               text not null,
    kind                  text not null,
    series                text,
    stage                 text not null,
    owner                 text not null,
    temporal_outcome      text,
    postgres_outcome      text,
    verdict               text not null default 'in_flight'
        check (verdict in ('in_flight', 'matched', 'diverged', 'dropped', 'not_comparable', 'incomplete')),
    classes               text[] not null default '{}',
    reason                text,
    attempts              json,
    divergences           json
) with (fillfactor = 60);
comment on table crossover.observations is 'Both sides of an interaction, side by side, and the comparator''s verdict.';
comment on column crossover.observations.look_at is 'When the comparator looks again; null where nothing more is expected.';
comment on column crossover.observations.attempts is
    'Every attempt of either side: [{side, rehearsal, epoch, attempt, due_at, dequeued_at, dequeued_seen_at, ended_at, ended_seen_at, outcome, retry_ms, error}], side clock and database clock (…_seen_at).';
comment on column crossover.observations.divergences is '[{class, side, detail}], one for each of classes.';
create index observations_look on crossover.observations (look_at) where look_at is not null;
create index observations_diverged on crossover.observations (judged_at) where verdict = 'diverged';
create index observations_account on crossover.observations (account, kind, judged_at);

-- Where a comparator stands. It goes on there after a restart.
create table crossover.comparators (
    name            text primary key,
    pins_until      timestamptz not null,
    sightings_until timestamptz not null,
    started_at      timestamptz not null default clock_timestamp(),
    beat_at         timestamptz not null default clock_timestamp()
);

-- Verdicts, counted. The numbers of a report without reading every row.
create table crossover.scores (
    account    text not null,
    kind       text not null,
    stage      text not null,
    day        date not null,
    verdicts   jsonb not null default '{}',
    classes    jsonb not null default '{}',
    updated_at timestamptz not null default clock_timestamp(),
    primary key (account, kind, stage, day)
) with (fillfactor = 60);
comment on column crossover.scores.verdicts is '{verdict: interactions}';
comment on column crossover.scores.classes is '{class: divergences}';

-- Latencies of both sides for the same interactions: mergeable sketches by side and measure, and the state of the
-- sequential test, as module `comparator::latency` writes them.
create table crossover.latencies (
    account    text not null,
    kind       text not null,
    stage      text not null,
    day        date not null,
    sketches   json not null,
    test       json not null,
    updated_at timestamptz not null default clock_timestamp(),
    primary key (account, kind, stage, day)
) with (fillfactor = 60);

-- The comparator reads pins in the order in which they were made.
create index pins_created on crossover.pins using brin (created_at) with (pages_per_range = 16, autosummarize = on);

-- Up to when everything written to a table (by its own clock_timestamp()) is visible: whoever still writes to it
-- began later. A transaction that was prepared and left behind holds it back for ever, and shows in the comparator's lag.
create function crossover.complete_until(p_table regclass) returns timestamptz
language sql volatile as $$
    select least(clock_timestamp() - interval '10 milliseconds',
        (select min(coalesce(a.xact_start, x.prepared, '-infinity'))
         from pg_locks l
         left join pg_stat_activity a on a.pid = l.pid
         left join pg_prepared_xacts x on l.virtualtransaction = '-1/' || x.transaction::text
         where l.locktype = 'relation' and l.relation = p_table and l.granted and l.pid is distinct from pg_backend_pid()
            and l.mode in ('RowExclusiveLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')))
$$;

-- As in the first migration, but for the lock that comes before the time.
-- Pins an interaction: its pin, its Postgres copy and an outbox row for its Temporal copy, or what is there
-- already. The stage is what the flags say; the pin's own is lower where the account may not go live.
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

    -- The account's marks. The first live pin of an account that never had unpinned work arms it: no router can
    -- have started anything of it unpinned, because that takes the mark, and the mark takes this lock.
    select * into v_account from crossover.accounts where account = p_account;
    if v_account.account is null or (v_live and v_account.armed_at is null and v_account.unpinned_at is null) then
        perform pg_advisory_xact_lock(crossover.account_lock(p_account));
        insert into crossover.accounts as a (account, armed_at) values (p_account, case when v_live then v_now end)
        on conflict (account) do update
            set armed_at = case when a.unpinned_at is null and v_live then coalesce(a.armed_at, v_now) else a.armed_at end
        returning * into v_account;
    else
        perform pg_advisory_xact_lock_shared(crossover.account_lock(p_account));
        select * into v_account from crossover.accounts where account = p_account;
    end if;
    if v_live and v_account.armed_at is null then v_stage := 'shadow'; end if;

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
