-- For lists alone, which say `enqueued >= 0`. Before it has statistics, PostgreSQL takes any index that has a task's key in
-- it for the key's own, and with this one it would read all of a function's tasks for each.
DROP INDEX tasks_listed;
CREATE INDEX tasks_listed ON tasks (account, function, enqueued, id) WHERE enqueued >= 0;
