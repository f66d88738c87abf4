-- What the comparator needs beyond its rows.

-- One comparator works at a time; another takes over when it has not beaten for a while.
alter table crossover.comparators add column holder uuid;
comment on column crossover.comparators.holder is 'The process that compares.';

alter table crossover.observations add column paired boolean not null default false;
comment on column crossover.observations.paired is 'Its latencies are in crossover.latencies: once, however often it is judged.';

-- For the deletion of old rows, which come in this order.
create index observations_pinned on crossover.observations using brin (pinned_at) with (pages_per_range = 16, autosummarize = on);

-- The sum of two objects of counts, without zeros.
create function crossover.counts_added(p_one jsonb, p_other jsonb) returns jsonb
language sql immutable parallel safe as $$
    select coalesce(jsonb_object_agg(name, total) filter (where total <> 0), '{}')
    from (select name, sum(n::bigint) as total
          from (select * from jsonb_each_text(p_one) union all select * from jsonb_each_text(p_other)) as both_of (name, n)
          group by name) totals
$$;
