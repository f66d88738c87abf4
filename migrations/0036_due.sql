-- What is due is found by the index alone. clock_timestamp() changes while a statement runs, so no index condition can be made of it: each look read all
-- that was scheduled, a million rows to find none.
create or replace function crossover.promote_due(p_limit integer) returns bigint
language sql as $$
    with due as materialized (
        select id from crossover.scheduled where due_at <= statement_timestamp() order by due_at limit p_limit for update skip locked),
    moved as (delete from crossover.scheduled s using due where s.id = due.id returning s.*),
    placed as (
        insert into crossover.ready (id, due_at, attempt, rank, execute, grp)
        select id, due_at, attempt, rank, execute, grp from moved order by due_at returning 1)
    select count(*) from placed
$$;

create or replace function crossover.promote_due_tasks(p_limit integer) returns bigint
language sql as $$
    with due as materialized (
        select id from crossover.tasks_scheduled where due_at <= statement_timestamp() order by due_at limit p_limit for update skip locked),
    moved as (delete from crossover.tasks_scheduled s using due where s.id = due.id returning s.*),
    placed as (
        insert into crossover.tasks_ready (rank, vt, id, created_at, due_at, attempt, account, kind, grp)
        select rank, vt, id, created_at, due_at, attempt, account, kind, grp from moved
        on conflict do nothing returning 1)
    select count(*) from placed
$$;
