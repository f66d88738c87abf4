-- A rehearsal that is about to wait for another attempt when its interaction is cancelled on Temporal would wait for an
-- attempt that never comes. The pin is locked against its end, so that either this sees the end, or the end sees the wait.
create or replace function crossover.cancel_instead_of_retry(p_ids uuid[]) returns setof uuid
language plpgsql as $$
declare
    v_pin record;
begin
    perform from crossover.pins p where p.id = any (p_ids) and p.owner = 'temporal' order by p.id for share;
    perform crossover.forget_rehearsals(array(
        select p.id from crossover.pins p where p.id = any (p_ids) and p.owner = 'temporal' and p.outcome = 'cancelled'));
    for v_pin in
        select p.id, p.cancel_reason from crossover.pins p
        where p.id = any (p_ids) and p.cancel_requested_at is not null and p.ended_at is null and p.owner = 'postgres'
        order by p.series_id, p.id
    loop
        perform crossover.cancel(v_pin.id, v_pin.cancel_reason);
        return next v_pin.id;
    end loop;
end $$;
