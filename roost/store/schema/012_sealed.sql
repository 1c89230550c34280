-- From here on definitions, configurations and addresses of destinations are sealed (`sealed.ALL`). A store that has been in
-- use gets a note; the start that finds it seals what is there, and takes the note away when no file has it in plain text.
INSERT INTO settings (name, value)
    SELECT 'plain text', 'true' WHERE EXISTS (SELECT 1 FROM settings) OR EXISTS (SELECT 1 FROM functions);
