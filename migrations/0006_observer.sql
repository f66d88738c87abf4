-- What the recorder needs beyond the sightings: how far each observer has got, and what it lost.

alter table crossover.observers
    add column clear_at timestamptz not null default clock_timestamp(),
    add column written  bigint not null default 0;
comment on column crossover.observers.beat_at is 'Its last sign of life.';
comment on column crossover.observers.clear_at is 'Everything that it saw before is written, or counted as dropped.';
comment on column crossover.observers.written is 'Its last batch, so that one whose answer was lost is not written twice.';

-- When an observer had to drop sightings. What should have been seen then may be missing without being missing.
create table crossover.lost_sightings (
    observer uuid not null,
    began_at timestamptz not null,
    ended_at timestamptz not null,
    dropped  bigint not null,
    primary key (observer, began_at)
);

-- The comparator reads sightings in the order in which they were written, a little at a time. They come in that order,
-- so this index only ever grows at its end; a BRIN index would have every look sort all that is not read yet.
drop index crossover.sightings_seen;
create index sightings_in_order on crossover.sightings (seen_at);

-- Drops the partitions of sightings that ended longer than p_keep ago, and observers, lost sightings and disturbances of
-- the same age. Answers how many partitions. One that is in use is left for another time.
create function crossover.drop_sightings(p_keep interval) returns integer
language plpgsql set lock_timeout = '200ms' as $$
declare
    part    text;
    before  date := (clock_timestamp() - p_keep)::date;
    dropped integer := 0;
begin
    perform pg_advisory_xact_lock(hashtextextended('crossover.partitions', 0));
    for part in
        select c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
        where i.inhparent = 'crossover.sightings'::regclass and c.relname ~ '^sightings_\d{8}$'
            and to_date(right(c.relname, 8), 'YYYYMMDD') < before
        order by c.relname
    loop
        begin
            execute format('drop table crossover.%I', part);
            dropped := dropped + 1;
        exception when lock_not_available then
            raise warning 'partition % is in use and is dropped another time', part;
        end;
    end loop;
    delete from crossover.sightings_default where seen_at < before;
    delete from crossover.lost_sightings where ended_at < before;
    delete from crossover.disturbances where ended_at < before;
    delete from crossover.observers where beat_at < before;
    return dropped;
end $$;
