CREATE TABLE agents (
    id uuid PRIMARY KEY,
    name varchar(40) NOT NULL UNIQUE,
    password_hash varchar(200) NOT NULL,
    hired_at timestamp with time zone NOT NULL
);
CREATE TABLE people (
    id bigserial PRIMARY KEY,
    name varchar(40) NOT NULL UNIQUE,
    city varchar(60),
    contact jsonb,
    agent_id uuid REFERENCES agents,
    avatar bytea,
    score double precision,
    created_at timestamp with time zone NOT NULL DEFAULT now()
);
INSERT INTO people (id, name) VALUES (500, 'berta');  -- somebody was there before
