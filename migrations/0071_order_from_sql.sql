-- What orders work (`after`, `exclusive`) from SQL. `crossover.enqueue` keeps its arguments, and so its grants; `crossover.enqueue_ordered`
-- takes them all. A router pins a row only when nothing that it names is left in the intake, so that one transaction can enqueue a
-- whole pipeline.

alter table crossover.intake add column after json, add column after_ids uuid[], add column exclusive text;
comment on column crossover.intake.after is 'What it runs after, as it was asked.';
comment on column crossover.intake.after_ids is 'The same by ids. A router pins it when none of them is in the intake any more.';
comment on column crossover.intake.exclusive is 'The key of those that it never runs beside.';

-- The interaction that a key of an account leads to: the router's `id_of_key`.
create function crossover.id_of_key(p_account text, p_key text) returns uuid
language sql immutable as $$
    select case when p_key ~ '^task_[0-9a-f]{32}$' and crossover.named_at(substr(p_key, 6)::uuid) is not null then substr(p_key, 6)::uuid
        else crossover.interaction_id(p_account, p_key) end
$$;

-- The faults of an `after`, as `router::request::after` finds them.
create function crossover.after_faults(p_after json) returns setof text
language plpgsql immutable as $$
declare
    v_ids  json := case json_typeof(p_after) when 'array' then p_after when 'object' then p_after -> 'ids' end;
    v_keys json := case json_typeof(p_after) when 'object' then p_after -> 'keys' end;
    v_many integer := 0;
begin
    if p_after is null or json_typeof(p_after) = 'null' then return; end if;
    if json_typeof(p_after) not in ('array', 'object') then
        return next 'after: must be a list of ids, or an object with ids, keys, when, on_failure';
        return;
    end if;
    if json_typeof(p_after) = 'object' then
        return query select crossover.field_faults('after.', p_after, array['ids', 'keys', 'when', 'on_failure']);
        if coalesce(p_after ->> 'when', 'all') not in ('all', 'any') then return next 'after.when: must be all or any'; end if;
        if coalesce(p_after ->> 'on_failure', 'skip') not in ('skip', 'run') then
            return next 'after.on_failure: must be skip or run';
        end if;
    end if;
    if v_ids is not null and json_typeof(v_ids) <> 'null' then
        if json_typeof(v_ids) <> 'array' or exists (
            select from json_array_elements(case when json_typeof(v_ids) = 'array' then v_ids else '[]' end) e (value)
            where json_typeof(e.value) <> 'string'
                or e.value #>> '{}' !~* '^[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}$')
        then
            return next 'after.ids: must list ids';
        else
            v_many := json_array_length(v_ids);
        end if;
    end if;
    if v_keys is not null and json_typeof(v_keys) <> 'null' then
        if json_typeof(v_keys) <> 'array' or exists (
            select from json_array_elements(case when json_typeof(v_keys) = 'array' then v_keys else '[]' end) e (value)
            where json_typeof(e.value) <> 'string' or crossover.name_fault('', e.value #>> '{}', 400) is not null)
        then
            return next 'after.keys: must list keys';
        else
            v_many := v_many + json_array_length(v_keys);
        end if;
    end if;
    if v_many > 1000 then
        return next format('after: names %s interactions, the limit is 1000; wait for a few that wait for the others', v_many);
    end if;
end $$;

-- What an `after` without faults names. Null: nothing.
create function crossover.after_ids(p_account text, p_after json) returns uuid[]
language sql immutable as $$
    select array_agg(distinct n.id) from (
        select (e.value #>> '{}')::uuid as id
        from json_array_elements(case when json_typeof(p_after) = 'array' then p_after
            when json_typeof(p_after) = 'object' and json_typeof(p_after -> 'ids') = 'array' then p_after -> 'ids' else '[]' end) e (value)
        union all
        select crossover.id_of_key(p_account, e.value #>> '{}')
        from json_array_elements(case when json_typeof(p_after) = 'object' and json_typeof(p_after -> 'keys') = 'array'
            then p_after -> 'keys' else '[]' end) e (value)) n
$$;

-- Accepts an interaction in the caller's transaction: it is accepted if and only if that commits. A key that came
-- before with the same work is answered with the same id, and keeps what it waits for. Raises 22023 with every fault, 23505 where the
-- key came before with other work.
create function crossover.enqueue_ordered(
    account text, kind text, payload json, after json default null, exclusive text default null, key text default null, series text default null, grp text default null,
    run_at timestamptz default null, priority integer default 0, policy json default null)
returns uuid language plpgsql security definer set search_path = pg_catalog, pg_temp as $$
#variable_conflict use_column
declare
    v_now     timestamptz := clock_timestamp();
    v_key     text := coalesce(enqueue_ordered.key, gen_random_uuid()::text);
    v_id      uuid;
    v_payload text := btrim(enqueue_ordered.payload::text, E' \t\n\r');
    v_faults  text[];
    v_no      bigint;
    v_before  record;
    v_after   uuid[];
begin
    v_faults := array_remove(array[
        coalesce(crossover.name_fault('account', enqueue_ordered.account, 200), case when enqueue_ordered.account is null then 'account: is missing' end),
        coalesce(crossover.name_fault('kind', enqueue_ordered.kind, 100), case when enqueue_ordered.kind is null then 'kind: is missing' end),
        crossover.name_fault('key', v_key, 400),
        crossover.name_fault('series', enqueue_ordered.series, 400),
        crossover.name_fault('grp', enqueue_ordered.grp, 100),
        crossover.name_fault('exclusive', enqueue_ordered.exclusive, 400),
        case when v_payload is null then 'payload: is missing; any JSON value is one, null too'
             when octet_length(v_payload) > 1572864 then format('payload: has %s bytes, the limit is 1572864', octet_length(v_payload))
             when crossover.nested_deeper(v_payload, 128) then 'payload: it is nested more than 128 levels deep' end,
        case when enqueue_ordered.priority not between -100 and 100 then format('priority: must be -100 to 100, is %s', enqueue_ordered.priority) end,
        case when enqueue_ordered.run_at not between v_now - interval '30 days' and v_now + interval '366 days'
             then format('run_at: is %s, more than 30 days ago or 366 days ahead', enqueue_ordered.run_at) end
        ] || array(select crossover.policy_faults(enqueue_ordered.policy)) || array(select crossover.after_faults(enqueue_ordered.after)), null);
    if v_faults <> '{}' then
        raise exception using errcode = '22023', message = 'not accepted: ' || array_to_string(v_faults, '; ');
    end if;
    v_id := crossover.interaction_id(enqueue_ordered.account, v_key);
    if enqueue_ordered.after is not null and not exists (select from crossover.pins p where p.id = v_id)
        and not exists (select from crossover.intake i where i.id = v_id and i.refused_at is null)
    then
        v_after := crossover.after_ids(enqueue_ordered.account, enqueue_ordered.after);
        if v_id = any (v_after) then
            raise exception using errcode = '22023', message = 'not accepted: after: names the interaction itself: it would wait for ever';
        end if;
        -- A circle can't be named: each must be there before.
        select format('%s', string_agg(u.id::text, ', ')) as names, count(*) as many into v_before from unnest(v_after) u (id)
        where not exists (select from crossover.pins p where p.id = u.id and p.account = enqueue_ordered.account)
            and not exists (select from crossover.intake i where i.id = u.id and i.account = enqueue_ordered.account and i.refused_at is null)
            and not exists (
                select from crossover.tasks t
                where t.id = u.id and t.created_at = crossover.named_at(u.id) and t.account = enqueue_ordered.account);
        if v_before.many > 0 then
            raise exception using errcode = '22023', message = format(
                'not accepted: after: account «%s» has no interactions %s; enqueue what is waited for first', enqueue_ordered.account,
                left(v_before.names, 400));
        end if;
    end if;

    -- What came before may be pinned between two of these looks, so they are repeated.
    for attempt in 1..5 loop
        insert into crossover.intake as i (id, run_at, priority, account, kind, key, series, grp, payload, policy, after, after_ids, exclusive)
        values (v_id, enqueue_ordered.run_at, coalesce(enqueue_ordered.priority, 0), enqueue_ordered.account, enqueue_ordered.kind, v_key, enqueue_ordered.series,
            enqueue_ordered.grp, v_payload::json, enqueue_ordered.policy, case when v_after is not null then enqueue_ordered.after end, v_after,
            enqueue_ordered.exclusive)
        -- What was refused was never accepted, so its key is free.
        on conflict (id) do update set no = default, created_at = v_now, due_at = v_now, run_at = excluded.run_at,
            refused_at = null, tries = 0, priority = excluded.priority, kind = excluded.kind, series = excluded.series,
            grp = excluded.grp, payload = excluded.payload, policy = excluded.policy, after = excluded.after,
            after_ids = excluded.after_ids, exclusive = excluded.exclusive, reason = null
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
        if v_before.kind <> enqueue_ordered.kind or v_before.conflict is not null
            or v_before.payload_hash <> sha256(convert_to(v_payload, 'UTF8')) then
            raise exception using errcode = '23505',
                message = format('key «%s» of account «%s» came before with another %s; use a new key for new work', v_key,
                    enqueue_ordered.account, case when v_before.kind <> enqueue_ordered.kind then 'kind' else 'payload' end);
        end if;
        delete from crossover.intake i where i.no = v_no;
        return v_id;
    end loop;
    raise exception using errcode = '40001', message = format('key «%s» is being enqueued by others all the time; try again', v_key);
end $$;
revoke execute on function crossover.enqueue_ordered from public;

-- The same without what orders it. Whoever may call it needs no right on the other.
create or replace function crossover.enqueue(
    account text, kind text, payload json, key text default null, series text default null, grp text default null,
    run_at timestamptz default null, priority integer default 0, policy json default null)
returns uuid language sql security definer set search_path = pg_catalog, pg_temp as $$
    select crossover.enqueue_ordered(enqueue.account, enqueue.kind, enqueue.payload, null, null, enqueue.key, enqueue.series,
        enqueue.grp, enqueue.run_at, enqueue.priority, enqueue.policy)
$$;
