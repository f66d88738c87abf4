-- What programs and people use from SQL: `crossover.enqueue`, and views that stay as they are while tables change.
-- docs/sql.md has every column.

-- Enqueue from SQL -------------------------------------------------------------------------------------------

-- What `crossover.enqueue` accepted and no router has pinned yet. SQL can't ask the flags, so a router does, and pins
-- in the transaction that deletes the row.
create table crossover.intake (
    no         bigint generated always as identity primary key,
    id         uuid not null unique check (id = crossover.interaction_id(account, key)),
    created_at timestamptz not null default clock_timestamp(),
    due_at     timestamptz not null default clock_timestamp(),
    run_at     timestamptz,
    refused_at timestamptz,
    tries      integer not null default 0,
    priority   smallint not null,
    account    text not null,
    kind       text not null,
    key        text not null,
    series     text,
    grp        text,
    payload    json not null,
    policy     json,
    reason     text
);
comment on column crossover.intake.no is 'The order in which a series is pinned.';
comment on column crossover.intake.due_at is 'When a router looks at it; later than created_at after a failure.';
comment on column crossover.intake.refused_at is 'Set where the router''s whole check found what this one can''t see. It stays until somebody has looked.';
comment on column crossover.intake.reason is 'Why it was refused, or why the last try failed.';
create index intake_open on crossover.intake (no) where refused_at is null;
create index intake_series on crossover.intake (account, kind, series, no) where series is not null and refused_at is null;
create index intake_refused on crossover.intake (refused_at) where refused_at is not null;

-- The faults of a name, as `router::request` finds them.
create function crossover.name_fault(p_field text, p_name text, p_most integer) returns text
language sql immutable as $$
    select p_field || ': ' || case
        when p_name = '' then 'is empty'
        when char_length(p_name) > p_most then format('has %s characters, the limit is %s', char_length(p_name), p_most)
        when p_name ~ '[\u0001-\u001f\u007f-\u009f]' then 'holds a control character'
    end
$$;

-- The fault of a whole number within bounds; null is as good as absent.
create function crossover.number_fault(p_field text, p_value json, p_least bigint, p_most bigint) returns text
language sql immutable as $$
    select p_field || ': ' || case
        when p_value is null or json_typeof(p_value) = 'null' then null
        when json_typeof(p_value) <> 'number' or p_value::text !~ '^-?[0-9]{1,18}$'
            then format('must be a whole number from %s to %s, is %s', p_least, p_most, left(p_value::text, 40))
        when p_value::text::bigint not between p_least and p_most
            then format('must be %s to %s, is %s', p_least, p_most, p_value)
    end
$$;

-- The fault of a number between two bounds.
create function crossover.fraction_fault(p_field text, p_value json, p_least numeric, p_most numeric) returns text
language sql immutable as $$
    select p_field || ': ' || case
        when p_value is null then null
        when json_typeof(p_value) <> 'number' or length(p_value::text) > 40
            then format('must be a number from %s to %s, is %s', p_least, p_most, left(p_value::text, 40))
        when p_value::text::double precision not between p_least and p_most
            then format('must be %s to %s, is %s', p_least, p_most, p_value)
    end
$$;

-- Fields that an object must not have, and those that it has twice.
create function crossover.field_faults(p_prefix text, p_object json, p_known text[]) returns setof text
language sql immutable as $$
    select p_prefix || left(f.key, 100) || case
        when f.key <> all (p_known) then ': is no field; the fields are ' || array_to_string(p_known, ', ')
        else ': comes twice' end
    from (select k.key, count(*) as times from json_object_keys(p_object) as k (key) group by k.key) f
    where f.key <> all (p_known) or f.times > 1
$$;

-- The faults of a backoff: growing waits, or listed ones.
create function crossover.backoff_faults(p_backoff json) returns setof text
language plpgsql immutable as $$
declare
    v_days constant bigint := 366 * 86400000::bigint;
    v_list json;
begin
    if json_typeof(p_backoff) <> 'object' then
        return next 'policy.backoff: must be an object, {initial_ms, factor, max_ms, jitter} or {delays_ms}';
        return;
    end if;
    v_list := p_backoff -> 'delays_ms';
    if v_list is null then
        return query select crossover.field_faults('policy.backoff.', p_backoff, array['initial_ms', 'factor', 'max_ms', 'jitter']);
        return next crossover.number_fault('policy.backoff.initial_ms', p_backoff -> 'initial_ms', 0, v_days);
        return next crossover.number_fault('policy.backoff.max_ms', p_backoff -> 'max_ms', 0, v_days);
        return next crossover.fraction_fault('policy.backoff.factor', p_backoff -> 'factor', 1, 100);
        return next crossover.fraction_fault('policy.backoff.jitter', p_backoff -> 'jitter', 0, 1);
    else
        return query select crossover.field_faults('policy.backoff.', p_backoff, array['delays_ms']);
        if json_typeof(v_list) <> 'array' or json_array_length(v_list) not between 1 and 1000 then
            return next 'policy.backoff.delays_ms: must list 1 to 1000 delays';
        else
            return query select crossover.number_fault('policy.backoff.delays_ms', d.value, 0, v_days)
                from json_array_elements(v_list) as d (value)
                where crossover.number_fault('', d.value, 0, v_days) is not null or json_typeof(d.value) = 'null' limit 1;
        end if;
    end if;
end $$;

-- The faults of a policy. What only the whole of it shows (max_ms below initial_ms) is the router's to find.
create function crossover.policy_faults(p_policy json) returns setof text
language plpgsql immutable as $$
declare
    v_day constant bigint := 86400000;
begin
    if p_policy is null then return; end if;
    if json_typeof(p_policy) <> 'object' then
        return next 'policy: must be an object';
        return;
    end if;
    return query select crossover.field_faults('policy.', p_policy,
        array['max_attempts', 'backoff', 'start_timeout_ms', 'run_timeout_ms', 'heartbeat_timeout_ms', 'give_up_after_ms']);
    return next crossover.number_fault('policy.max_attempts', p_policy -> 'max_attempts', 1, 1000);
    return next crossover.number_fault('policy.run_timeout_ms', p_policy -> 'run_timeout_ms', 1, 7 * v_day);
    return next crossover.number_fault('policy.start_timeout_ms', p_policy -> 'start_timeout_ms', 1, 366 * v_day);
    return next crossover.number_fault('policy.heartbeat_timeout_ms', p_policy -> 'heartbeat_timeout_ms', 1, v_day);
    return next crossover.number_fault('policy.give_up_after_ms', p_policy -> 'give_up_after_ms', 1, 366 * v_day);
    if json_typeof(p_policy -> 'backoff') <> 'null' then
        return query select crossover.backoff_faults(p_policy -> 'backoff');
    end if;
end $$;

-- Whether a document is nested in more than p_most levels: without its strings, pairs of brackets are taken away level
-- by level.
create function crossover.nested_deeper(p_document text, p_most integer) returns boolean
language plpgsql immutable as $$
declare
    v_brackets text := regexp_replace(regexp_replace(p_document, '"(?:[^"\\]|\\.)*"', '', 'g'), '[^][{}]', '', 'g');
begin
    for i in 1..p_most loop
        exit when v_brackets = '';
        v_brackets := regexp_replace(v_brackets, '\[\]|\{\}', '', 'g');
    end loop;
    return v_brackets <> '';
end $$;

-- Accepts an interaction in the caller's transaction: it is accepted if and only if that commits. A key that came
-- before with the same work is answered with the same id. Raises 22023 with every fault, 23505 where the key came
-- before with other work.
create function crossover.enqueue(
    account text, kind text, payload json, key text default null, series text default null, grp text default null,
    run_at timestamptz default null, priority integer default 0, policy json default null)
returns uuid language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    v_now     timestamptz := clock_timestamp();
    v_key     text := coalesce(enqueue.key, gen_random_uuid()::text);
    v_id      uuid;
    v_payload text := btrim(enqueue.payload::text, E' \t\n\r');
    v_faults  text[];
    v_no      bigint;
    v_before  record;
begin
    v_faults := array_remove(array[
        coalesce(crossover.name_fault('account', enqueue.account, 200), case when enqueue.account is null then 'account: is missing' end),
        coalesce(crossover.name_fault('kind', enqueue.kind, 100), case when enqueue.kind is null then 'kind: is missing' end),
        crossover.name_fault('key', v_key, 400),
        crossover.name_fault('series', enqueue.series, 400),
        crossover.name_fault('grp', enqueue.grp, 100),
        case when v_payload is null then 'payload: is missing; any JSON value is one, null too'
             when octet_length(v_payload) > 1572864 then format('payload: has %s bytes, the limit is 1572864', octet_length(v_payload))
             when crossover.nested_deeper(v_payload, 128) then 'payload: it is nested more than 128 levels deep' end,
        case when enqueue.priority not between -100 and 100 then format('priority: must be -100 to 100, is %s', enqueue.priority) end,
        case when enqueue.run_at not between v_now - interval '30 days' and v_now + interval '366 days'
             then format('run_at: is %s, more than 30 days ago or 366 days ahead', enqueue.run_at) end
        ] || array(select crossover.policy_faults(enqueue.policy)), null);
    if v_faults <> '{}' then
        raise exception using errcode = '22023', message = 'not accepted: ' || array_to_string(v_faults, '; ');
    end if;
    v_id := crossover.interaction_id(enqueue.account, v_key);

    -- What came before may be pinned between two of these looks, so they are repeated.
    for attempt in 1..5 loop
        insert into crossover.intake as i (id, run_at, priority, account, kind, key, series, grp, payload, policy)
        values (v_id, enqueue.run_at, coalesce(enqueue.priority, 0), enqueue.account, enqueue.kind, v_key, enqueue.series,
            enqueue.grp, v_payload::json, enqueue.policy)
        -- What was refused was never accepted, so its key is free.
        on conflict (id) do update set no = default, created_at = v_now, due_at = v_now, run_at = excluded.run_at,
            refused_at = null, tries = 0, priority = excluded.priority, kind = excluded.kind, series = excluded.series,
            grp = excluded.grp, payload = excluded.payload, policy = excluded.policy, reason = null
            where i.refused_at is not null
        returning i.no into v_no;
        -- After the insert, which waits for a router that is pinning the same key: its pin is seen here.
        select p.kind, p.payload_hash, p.conflict into v_before from crossover.pins p where p.id = v_id;
        if not found then
            if v_no is not null then return v_id; end if;
            select i.kind, sha256(convert_to(i.payload::text, 'UTF8')) as payload_hash, null::text as conflict
                into v_before from crossover.intake i where i.id = v_id and i.refused_at is null;
            continue when not found;
        end if;
        if v_before.kind <> enqueue.kind or v_before.conflict is not null
            or v_before.payload_hash <> sha256(convert_to(v_payload, 'UTF8')) then
            raise exception using errcode = '23505',
                message = format('key «%s» of account «%s» came before with another %s; use a new key for new work', v_key,
                    enqueue.account, case when v_before.kind <> enqueue.kind then 'kind' else 'payload' end);
        end if;
        delete from crossover.intake i where i.no = v_no;
        return v_id;
    end loop;
    raise exception using errcode = '40001', message = format('key «%s» is being enqueued by others all the time; try again', v_key);
end $$;
revoke execute on function crossover.enqueue from public;

-- Views ------------------------------------------------------------------------------------------------------

create view crossover.interactions as
    select p.id, p.account, p.kind, p.key, p.series, p.series_no, p.grp, p.priority,
        case
            when p.outcome is not null then p.outcome
            when p.conflict is not null then 'held'
            when u.execute then 'running'
            when s.execute then 'scheduled'
            when r.execute then 'ready'
            when p.owner = 'temporal' and o.id is null and p.run_at <= clock_timestamp() then 'running'
            when p.owner = 'temporal' and p.run_at > clock_timestamp() then 'scheduled'
            else 'waiting'
        end as state,
        p.stage, p.owner, p.epoch, p.created_at as accepted_at, p.created_at as pinned_at, p.run_at, p.ended_at, p.attempts,
        p.outcome, coalesce(p.conflict, p.reason) as reason
    from crossover.pins p
    left join crossover.outbox o on o.id = p.id
    left join crossover.running u on u.id = p.id
    left join crossover.scheduled s on s.id = p.id
    left join crossover.ready r on r.id = p.id
    union all
    select i.id, i.account, i.kind, i.key, i.series, null, coalesce(i.grp, 'default'), i.priority,
        case when i.refused_at is null then 'accepted' else 'refused' end, null, null, null, i.created_at, null, i.run_at, null,
        0, null, i.reason
    from crossover.intake i
    where not exists (select from crossover.pins p where p.id = i.id);
comment on view crossover.interactions is 'Every interaction and where it stands. See docs/sql.md.';

create view crossover.queue_depth as
    select grp, sum(ready)::bigint as ready, sum(scheduled)::bigint as scheduled, sum(running)::bigint as running,
        sum(rehearsals)::bigint as rehearsals, min(oldest) as oldest_due_at,
        coalesce(greatest(extract(epoch from clock_timestamp() - min(oldest)), 0), 0)::float8 as oldest_seconds
    from (
        select grp, count(*) as ready, 0 as scheduled, 0 as running, count(*) filter (where not execute) as rehearsals, min(due_at) as oldest
        from crossover.ready group by grp
        union all
        select grp, 0, count(*), 0, count(*) filter (where not execute), null from crossover.scheduled group by grp
        union all
        select grp, 0, 0, count(*), count(*) filter (where not execute), null from crossover.running group by grp
    ) places
    group by grp;
comment on view crossover.queue_depth is 'Copies on the Postgres side by group. Counts every row. See docs/sql.md.';

create view crossover.divergences as
    select o.id, o.account, o.kind, o.stage, o.owner, c.class, d.side, d.detail, o.judged_at as found_at
    from crossover.observations o
    cross join lateral (select distinct unnest(o.classes) as class) c
    left join lateral (
        select e.value ->> 'side' as side, e.value ->> 'detail' as detail
        from json_array_elements(o.divergences) as e (value) where e.value ->> 'class' = c.class) d on true
    where o.verdict = 'diverged';
comment on view crossover.divergences is 'What the comparator found, a row for each class of an interaction and side. See docs/sql.md.';

-- For the status -------------------------------------------------------------------------------------

-- Held work is rare and worth finding.
create index pins_held on crossover.pins (created_at) where conflict is not null;
