-- What a key is for, where not all that its role may: "tool:run_code function:f", separated by spaces.
ALTER TABLE access_keys ADD COLUMN grants TEXT NOT NULL DEFAULT '';
