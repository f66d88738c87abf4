-- Temporal away: an outbox whose size does not slow the relay down, and whose rehearsals are bounded.

alter table crossover.outbox
    add column parked boolean not null default false,
    add column rehearsal boolean not null default false;
comment on column crossover.outbox.parked is
    'It can''t go to Temporal before something else of its series; a relay takes it out of the way of the others until then.';
comment on column crossover.outbox.rehearsal is
    'Nothing of it runs on Temporal, so it may be dropped where too many wait. A hint: whoever drops one asks the pin.';

-- What a relay looks at holds nothing that can't go now, however far a series is ahead of its head.
drop index crossover.outbox_due;
create index outbox_due on crossover.outbox (due_at) where not parked;
create index outbox_parked on crossover.outbox (series_id, series_no) where parked;
create index outbox_rehearsals on crossover.outbox (created_at) where rehearsal and not cancel;

-- Whoever writes the row (a pin, a sweep, a cancel, a handover) need not know.
create function crossover.outbox_rehearses() returns trigger
language plpgsql as $$
begin
    new.rehearsal := exists (select from crossover.pins p where p.id = new.id and p.owner = 'postgres');
    return new;
end $$;
create trigger outbox_rehearses before insert or update of epoch on crossover.outbox
    for each row execute function crossover.outbox_rehearses();
update crossover.outbox set epoch = epoch;

-- Takes up to p_limit copies that may go to Temporal, for p_lease, in the order in which they were due: pin age, but for
-- copies that failed. Of a series that is only the first. What can't go yet is parked, so that it is looked at once and not
-- with every look. `looked` is p_scan where there is more to look at.
create function crossover.take_outbox(p_limit integer, p_scan integer, p_lease interval, out looked integer, out ids uuid[])
language sql as $$
    with looked as materialized (
        select o.id, o.due_at, o.series_id, o.series_no, s.head_no
        from crossover.outbox o left join crossover.series s on s.series_id = o.series_id
        where not o.parked and o.due_at <= clock_timestamp()
        order by o.due_at limit p_scan for update of o skip locked),
    judged as materialized (
        select l.id, l.due_at, case
            when l.series_id is null then true
            when exists (select from crossover.outbox e where e.series_id = l.series_id and e.series_no < l.series_no) then false
            else crossover.deliverable(l.series_id, l.series_no, l.head_no) end as may
        from looked l),
    taken as (
        update crossover.outbox o set due_at = clock_timestamp() + p_lease
        from (select id from judged where may order by due_at limit p_limit) d where o.id = d.id returning o.id),
    parked as (
        update crossover.outbox o set parked = true from judged j where o.id = j.id and not j.may)
    select (select count(*)::integer from looked), array(select id from taken)
$$;

-- Brings back what was parked and may go now: of each series with something parked the first, where nothing of the series
-- is before it and its head has come near. It has its old place, by due_at. Looks at p_limit series after p_after; the last
-- of them is where the next look goes on, and null where all were looked at.
create function crossover.unpark_outbox(p_after uuid, p_limit integer, out woken integer, out last uuid)
language sql as $$
    with recursive firsts as (
        (select o.id, o.series_id, o.series_no from crossover.outbox o
         where o.parked and o.series_id > coalesce(p_after, '00000000-0000-0000-0000-000000000000')
         order by o.series_id, o.series_no limit 1)
        union all
        select n.* from firsts f cross join lateral (
            select o.id, o.series_id, o.series_no from crossover.outbox o
            where o.parked and o.series_id > f.series_id order by o.series_id, o.series_no limit 1) n),
    looked as materialized (select * from firsts limit p_limit),
    free as materialized (
        select o.id from looked l
        join crossover.series s on s.series_id = l.series_id join crossover.outbox o on o.id = l.id
        where o.parked and crossover.deliverable(l.series_id, l.series_no, s.head_no)
            and not exists (select from crossover.outbox e where e.series_id = l.series_id and e.series_no < l.series_no)
        for update of o skip locked),
    woken as (update crossover.outbox o set parked = false from free f where o.id = f.id returning 1)
    select (select count(*)::integer from woken),
        (select series_id from looked where (select count(*) from looked) >= p_limit order by series_id desc limit 1)
$$;

-- Drops the oldest rehearsals where more than p_most wait for Temporal, at most p_limit at a time, and writes down with the
-- drop that they were left out: nobody ever takes them for missing. An execution is never dropped, whatever the row says:
-- its pin is asked under a lock, so that a handover can't come between. What somebody delivers just now is left to him, and
-- so is the word that something is called off. The chain does not change: what waits for a member waits for its pin.
create function crossover.drop_rehearsals(p_most bigint, p_limit integer, p_note text) returns bigint
language plpgsql as $$
declare
    v_over    bigint;
    v_dropped bigint;
begin
    select count(*) - p_most into v_over from crossover.outbox where rehearsal and not cancel;
    if v_over <= 0 then return 0; end if;
    with oldest as materialized (
        select o.id from crossover.outbox o join crossover.pins p on p.id = o.id
        where o.rehearsal and not o.cancel and p.owner = 'postgres' and (o.parked or o.due_at <= clock_timestamp())
        order by o.created_at limit least(v_over, p_limit)
        for update of o skip locked for share of p skip locked),
    dropped as (
        delete from crossover.outbox o using oldest d where o.id = d.id returning o.id, o.epoch),
    noted as (
        insert into crossover.sightings (side_at, id, observer, epoch, attempt, rehearsal, side, what, note)
        select clock_timestamp(), id, '00000000-0000-0000-0000-000000000000', epoch, 0, true, 'temporal', 'skipped', p_note
        from dropped)
    select count(*) into v_dropped from dropped;
    return v_dropped;
end $$;
