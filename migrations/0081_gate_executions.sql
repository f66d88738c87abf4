-- no-transaction
-- Which executions of an account may take the place of a rehearsal, however many rehearsals of it wait. Built beside the work; if it was
-- interrupted, `drop index crossover.gate_executions_of`, then migrate again.
create index concurrently gate_executions_of on crossover.gate (grp, account, rank, ord, id) where execute and not task;
