-- Marks of who holds a place of a group with limits; the next migration says what they mean. By themselves, and all three tables at once,
-- so that nothing else is locked beside them: work waits for a moment.
lock table crossover.ready, crossover.running, crossover.tasks_ready in access exclusive mode;
alter table crossover.ready add column gated_for text;
alter table crossover.running add column gated_for text;
alter table crossover.tasks_ready add column gated boolean not null default false;
comment on column crossover.ready.gated_for is 'The account for which it holds a place of its group. Null: it holds none.';
comment on column crossover.running.gated_for is 'The account for which it holds a place of its group. Null: it holds none.';
comment on column crossover.tasks_ready.gated is 'It holds a place of its group.';
