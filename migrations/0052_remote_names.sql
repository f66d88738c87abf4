-- Groups that already had such a name: from now on remote workers have their work.
update crossover.ready set rank = rank + 1000 where starts_with(grp, 'remote.') and execute and rank <= 500;
