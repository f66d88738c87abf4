-- Tells the workers of other processes that something can start. It goes in a transaction of its own, a few for each
-- second, because whoever commits a NOTIFY waits for everybody else who does; and nobody waits for its flush: what is lost with the server
-- is found by the poll.
create function crossover.ring(p_from text) returns void
language plpgsql as $$
begin
    perform set_config('synchronous_commit', 'off', true);
    perform pg_notify('crossover_ready', p_from);
end $$;
